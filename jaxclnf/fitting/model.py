"""A complete model: shape, patch experts for every scale, parts."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array, Int

from jaxclnf.experts.ccnf import with_sigma
from jaxclnf.experts.types import CCNFExperts, PatchExperts
from jaxclnf.pytree import pytree_dataclass, static
from jaxclnf.shape.pdm import PDM


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """Where a model comes from; travels with it into every file."""

    name: str
    """Short name, shown to people."""
    licence: str = ""
    """Full text of the licence and the notices that must travel with the model."""
    provenance: str = ""
    """How and from what the model was made."""


@dataclasses.dataclass(frozen=True)
class BoxCalibration:
    """Where a model's landmarks are in a square of the face detector.

    Everything is a fraction of the square's side.
    """

    shift: tuple[float, float]
    """From the square's corner to that of the box around the landmarks, x and y."""
    size: tuple[float, float]
    """Width and height of that box."""


@pytree_dataclass
class CLNFPart:
    """A model of some of the landmarks, fitted after the main one."""

    model: "CLNFModel"
    """The part's own shape and experts."""
    main_index: Int[Array, " q"]
    """Landmarks of the main model that the part shares."""
    part_index: Int[Array, " q"]
    """The same landmarks in the part's own numbering."""
    name: str = static()
    """Which part it is, for instance `"left_eye_28"`."""


@pytree_dataclass
class CLNFModel:
    """Everything that `fit` needs to know about faces."""

    pdm: PDM
    """The shape model."""
    experts: tuple[PatchExperts, ...]
    """Patch experts, coarsest scale first."""
    parts: tuple[CLNFPart, ...] = ()
    """Models of parts of the face."""
    triangulations: tuple[Int[Array, "t 3"], ...] = ()
    """Triangles between landmarks for each view, for drawing."""
    info: ModelInfo = static(default=ModelInfo(name="unnamed"))
    """Name, licence and provenance."""
    box_calibration: BoxCalibration | None = static(default=None)
    """How `detect_faces` finds this model's landmarks; None: as for OpenFace's."""

    def prepared(self, window_sizes: Sequence[int]) -> "CLNFModel":
        """This model with Sigma matrices ready for some window sizes.

        Nothing depends on it but speed: a window size that was not prepared is solved
        for while fitting.

        Args:
            window_sizes: Window size of each scale, as in `FitOptions`; sizes beyond
                the model's scales are ignored.

        Returns:
            A model whose CCNF experts hold exactly the Sigma matrices asked for.

        Example:
            >>> model.prepared((7,)).experts[0].sigma.keys()
            dict_keys([7])
        """
        sizes = tuple(window_sizes) + (0,) * len(self.experts)
        experts = tuple(
            with_sigma(e, (size,) if size else ()) if isinstance(e, CCNFExperts) else e
            for e, size in zip(self.experts, sizes, strict=False)
        )
        return dataclasses.replace(self, experts=experts)
