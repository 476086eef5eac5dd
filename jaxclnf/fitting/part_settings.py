"""How the models of parts of the face are fitted, unless that is chosen otherwise."""

from typing import NamedTuple


class PartSettings(NamedTuple):
    """How the model of a part of the face is fitted."""

    window_sizes: tuple[int, ...]
    """Side of the response maps at each of the part's scales."""
    sigma: float
    """Bandwidth of the kernel density estimate, reference pixels."""
    reg_factor: float
    """Weight of the shape prior, px^2 of the image, on a face of `PART_REG_SCALE`."""
    weight_factor: float
    """Weight of each landmark per unit of its expert's confidence; 0: all weigh 1."""


_EYE = PartSettings((3, 5), 1.0, 0.5, 0.0)
PART_SETTINGS = {
    "inner": PartSettings((9,), 1.75, 2.5, 2.5),
    "left_eye_28": _EYE,
    "right_eye_28": _EYE,
}
"""OpenFace's settings of parts by their name."""

PART_REG_SCALE = 1.4
"""`FitOptions.reg_scale` of these parts, pixels per millimetre, where the whole has
one: a face 200 pixels wide, of which their experts see enough."""
