"""Why a fit differs from that of the C++ program: ties within float32.

OpenFace rounds sample positions to 1/32 px and kernel positions to a tenth of a pixel
of the map, chooses the nearest view, the likeliest start, and stops below 0.01 px. A
difference in the last bit before such a choice can turn it. What is shown here: boxes
that differ in their last bits make our own fit jump as far, and one of them often onto
the C++ program's result; and the first thing that differs between the two fits.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from reference_fits import Case, model_of, on_canvas, options_of, run, starts_of

import jaxclnf
from jaxclnf.fitting.schedule import fit_scales
from jaxclnf.shape.reference import reference_frame, reference_project
from jaxclnf.solver.evidence import landmark_positions

NUM_TRIALS = 40
"""Boxes tried around the true one."""
_LAST_BITS = 4
"""Largest change of each number of a box, in units of its last place."""


@dataclasses.dataclass(frozen=True)
class Tie:
    """What last bits do to one face."""

    kind: str
    """The first thing that differs between our fit and the trial nearest to the C++
    program: `start`, `view`, `sample position`, `kernel cell`, `stop`, `part`, or
    `none found`."""
    spread: float
    """Largest difference between our fit and a trial, pixels."""
    nearest: float
    """Difference between the C++ program and the nearest trial, pixels."""


def explain(configuration: str, mode: str, case: Case, *, seed: int = 0) -> Tie:
    """Fits a face from boxes that differ in their last bits.

    Args:
        configuration: Which model and settings.
        mode: How many starts.
        case: The face.
        seed: Of the changes.

    Returns:
        What was found.
    """
    rng = np.random.default_rng(seed)
    ours = run(configuration, mode, case.image, case.box)
    spread, nearest, best = 0.0, np.inf, None
    for _ in range(NUM_TRIALS):
        bits = rng.integers(-_LAST_BITS, _LAST_BITS + 1, 4)
        box = (case.box + bits * np.spacing(case.box)).astype(np.float32)
        trial = run(configuration, mode, case.image, box)
        spread = max(spread, _distance(trial.landmarks, ours.landmarks))
        to_reference = _distance(trial.landmarks, case.landmarks)
        if to_reference < nearest:
            nearest, best = to_reference, (box, trial)
    assert best is not None
    box, trial = best
    if int(trial.start) != int(ours.start):
        kind = "start"
    else:
        kind = _first_difference(configuration, mode, case, box, int(ours.start))
    return Tie(kind, spread, nearest)


def _distance(a: jax.Array, b: jax.Array | np.ndarray) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


@jax.jit
def _traced(model, image, size, start, options):
    return fit_scales(model, image, size, start, options, with_trace=True)


def _first_difference(
    configuration: str, mode: str, case: Case, box: np.ndarray, start: int
) -> str:
    ours = choices(configuration, mode, case.image, case.box, start)
    others = choices(configuration, mode, case.image, box, start)
    for (kind, mine), (_, theirs) in zip(ours, others, strict=False):
        if not np.array_equal(mine, theirs):
            return kind
    model = model_of(configuration)
    has_parts = options_of(configuration, mode).use_parts and bool(model.parts)
    return "part" if has_parts else "none found"


def choices(
    configuration: str, mode: str, image: np.ndarray, box: np.ndarray, start: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Every choice that rounding can turn in the fit of the whole face, in order.

    Args:
        configuration: Which model and settings.
        mode: How many starts.
        image: Grey values.
        box: Where the fit starts.
        start: Which of the starts.

    Yields:
        What was chosen, and the choice as an array.
    """
    model, options = model_of(configuration), options_of(configuration, mode)
    starts = starts_of(model.pdm, jnp.asarray(box, jnp.float32), options.starts)
    one = jax.tree.map(lambda x: x[start], starts)
    size = np.asarray(image.shape, np.int32)
    _, trace = _traced(model, on_canvas(image), size, one, options)
    assert trace is not None
    valid = np.asarray(trace.valid)
    for scale, window in enumerate(options.window_sizes[: len(model.experts)]):
        if window == 0:
            continue
        experts = model.experts[scale]
        at = lambda phase, slot, s=scale: jax.tree.map(
            lambda x: x[s, phase, slot], trace.states
        )
        params = at(0, 0).params
        yield (
            "view",
            np.asarray(jaxclnf.choose_view(experts.view_centers, params.euler)),
        )
        base = reference_project(model.pdm, params)
        there, back = reference_frame(model.pdm, params, base, experts.patch_scaling)
        yield (
            "sample position",
            np.asarray(
                jaxclnf.areas_of_interest(
                    image,
                    base,
                    back,
                    window + experts.support - 1,
                    sampling="fixed_point",
                )
            ),
        )
        frame = jaxclnf.ResponseMaps(
            maps=jnp.zeros((model.pdm.num_landmarks, window, window)),
            base_shape=base,
            ref_from_img=there,
            img_from_ref=back,
            visibility=experts.visibility[0],
            confidence=experts.confidence[0],
            view=jnp.zeros((), jnp.int32),
        )
        for phase in (0, 1):
            steps = int(valid[scale, phase].sum())
            for slot in range(steps):
                positions = landmark_positions(frame, at(phase, slot).evidence.shape)
                cells = np.asarray(positions) / np.float32(0.1) + np.float32(0.5)
                yield "kernel cell", np.floor(np.clip(cells, 0, 10 * window - 1))
            yield "stop", np.asarray(steps)
