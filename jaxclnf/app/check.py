"""`jaxclnf check`: are a model's analytic derivatives right?

Random parameters, random response maps, float64; every analytic derivative against
automatic differentiation through the retraction and against central differences.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from jaxclnf.app.errors import ArgumentError
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.shape.pdm import (
    NUM_RIGID,
    PDM,
    PDMParams,
    jacobian,
    project,
    retract,
    shape_3d,
)
from jaxclnf.shape.similarity import align_shapes, inverse_similarity
from jaxclnf.solver.objective import curvature, gradient, objective
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.storage.load import DEFAULT_MODEL, load_pdm

TOLERANCES = {"autodiff": 1e-10, "differences": 1e-6}
"""Largest error allowed, relative to the largest entry of the block. float64 rounding
is 1e-16; the differences' own error, at their steps, is about 1e-8."""

_BLOCKS = {
    "scale": slice(0, 1),
    "rotation": slice(1, 4),
    "translation": slice(4, NUM_RIGID),
    "modes": slice(NUM_RIGID, None),
}
_WINDOW = 11
_STEP = 0.01  # central differences move the landmarks about this far, pixels


@dataclasses.dataclass(frozen=True)
class CheckRow:
    """The worst entry of one block of one derivative."""

    quantity: str
    """`jacobian`, `gradient` or `curvature`."""
    block: str
    """Which columns: `scale`, `rotation`, `translation` or `modes`."""
    reference: str
    """`autodiff` or `differences`."""
    error: float
    """Largest difference, relative to the largest entry of the block."""
    entry: tuple[int, ...]
    """Where in the array it is."""
    draw: int
    """In which random draw."""
    params_global: np.ndarray
    """Pose of that draw: scale, pitch, yaw, roll, tx, ty."""
    params_local: np.ndarray
    """Mode weights of that draw."""

    @property
    def passed(self) -> bool:
        """Whether the error is within tolerance; NaN is not."""
        return self.error <= TOLERANCES[self.reference]


def check_model(pdm: PDM, *, num_draws: int = 24, seed: int = 0) -> list[CheckRow]:
    """Compares all analytic derivatives of a model with two independent ways.

    The Jacobian of `project`, the gradient and the exact curvature of the objective F,
    against `jax.jacfwd`, `jax.grad` and `jax.hessian` through the retraction, and
    against central differences, at random parameters with yaws up to and at 90 degrees
    and some at exactly zero. Runs in float64 whatever the present setting.

    Args:
        pdm: The shape model.
        num_draws: How many random parameters.
        seed: Seed of the draws.

    Returns:
        One row per derivative, block and reference, with its worst entry.

    Raises:
        TypeError: It is no shape model.
        ValueError: There are no draws.

    Example:
        >>> all(row.passed for row in check_model(pdm, num_draws=2))
        True
    """
    if not isinstance(pdm, PDM):
        raise TypeError(
            f"pdm is a {type(pdm).__name__}; expected a PDM, such as model.pdm"
        )
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; expected 1 or more")
    with jax.enable_x64(True):
        pdm = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), pdm)
        params, responses = _draws(pdm, num_draws, seed)
        options = NURLMSOptions(sigma=1.7, reg_factor=20.0, weight_factor=2.0)
        compare = jax.jit(jax.vmap(_derivatives, in_axes=(None, 0, 0, None)))
        results = jax.tree.map(np.asarray, compare(pdm, params, responses, options))
        poses = np.asarray(jax.vmap(lambda p: p.params_global)(params))
        local = np.asarray(params.params_local)
    rows = []
    for quantity in ("jacobian", "gradient", "curvature"):
        analytic, references = results[quantity]
        for block, columns in _BLOCKS.items():
            for name, reference in references.items():
                rows.append(
                    _worst(
                        (quantity, block, name),
                        analytic[..., columns],
                        reference[..., columns],
                        columns.start,
                        poses,
                        local,
                    )
                )
    return rows


def _derivatives(
    pdm: PDM, params: PDMParams, responses: ResponseMaps, options: NURLMSOptions
) -> dict[str, tuple[Array, dict[str, Array]]]:
    zero = jnp.zeros(NUM_RIGID + pdm.num_modes)

    def moved(delta: Float[Array, " d"]) -> Float[Array, "n 2"]:
        return project(pdm, retract(params, delta))

    def climbed(delta: Float[Array, " d"]) -> Float[Array, ""]:
        return objective(pdm, responses, retract(params, delta), options)

    columns = jax.jacfwd(moved)(zero)
    steps = _STEP / jnp.max(jnp.abs(columns), axis=(0, 1))
    slope = jax.grad(climbed)
    return {
        "jacobian": (
            jacobian(pdm, params),
            {"autodiff": columns, "differences": _differences(moved, steps)},
        ),
        "gradient": (
            gradient(pdm, responses, params, options),
            {"autodiff": slope(zero), "differences": _differences(climbed, steps)},
        ),
        "curvature": (
            curvature(pdm, responses, params, options),
            {
                "autodiff": -jax.hessian(climbed)(zero),
                "differences": -_differences(slope, steps),
            },
        ),
    }


def _differences(
    function: Callable[[Float[Array, " d"]], Array], steps: Float[Array, " d"]
) -> Array:
    """Fourth-order central differences at zero; the last axis is the direction."""
    at = jax.vmap(function, out_axes=-1)
    near, far = jnp.diag(steps), jnp.diag(2 * steps)
    changes = 8 * (at(near) - at(-near)) - (at(far) - at(-far))
    return changes / (12 * steps).reshape((1,) * (changes.ndim - 1) + (-1,))


def _draws(pdm: PDM, num_draws: int, seed: int) -> tuple[PDMParams, ResponseMaps]:
    rng = np.random.default_rng(seed)
    n, m = pdm.num_landmarks, pdm.num_modes
    euler = rng.uniform(-1.2, 1.2, (num_draws, 3))
    euler[0::4] = 0
    euler[1::4, 1] = np.pi / 2 * rng.choice([-1, 1], euler[1::4, 1].shape)
    size = 150 / np.ptp(np.asarray(pdm.mean_shape), axis=0).max()
    scale = size * np.exp(rng.uniform(np.log(0.3), np.log(5), num_draws))
    translation = rng.uniform(0, 1000, (num_draws, 2))
    vectors = np.column_stack([scale, euler, translation])
    weights = np.clip(rng.normal(size=(num_draws, m)), -3, 3)
    weights[0] = 0
    local = weights * np.sqrt(np.asarray(pdm.eigen_values))
    params = jax.vmap(PDMParams.from_global)(jnp.asarray(vectors), jnp.asarray(local))

    def maps_around(
        params: PDMParams, maps: Array, offsets: Array, visibility: Array
    ) -> ResponseMaps:
        landmarks = project(pdm, params)
        reference = 0.5 * size * shape_3d(pdm, params.params_local)[:, :2]
        ref_from_img = align_shapes(landmarks, reference)
        img_from_ref = inverse_similarity(ref_from_img)
        base = landmarks - jnp.matmul(offsets, img_from_ref.T)
        return ResponseMaps(
            maps=maps,
            base_shape=base,
            ref_from_img=ref_from_img,
            img_from_ref=img_from_ref,
            visibility=visibility,
            confidence=jnp.linspace(0.1, 0.9, n),
            view=jnp.zeros((), jnp.int32),
        )

    maps = rng.uniform(size=(num_draws, n, _WINDOW, _WINDOW))
    offsets = rng.normal(0, _WINDOW / 4, (num_draws, n, 2))
    visibility = rng.uniform(size=(num_draws, n)) < 0.9
    responses = jax.vmap(maps_around)(
        params, *map(jnp.asarray, (maps, offsets, visibility))
    )
    return params, responses


def _worst(
    key: tuple[str, str, str],
    analytic: np.ndarray,
    reference: np.ndarray,
    first_column: int,
    poses: np.ndarray,
    local: np.ndarray,
) -> CheckRow:
    inner = tuple(range(1, analytic.ndim))
    size = np.maximum(np.abs(reference).max(axis=inner, keepdims=True), 1e-12)
    error = np.abs(analytic - reference) / size
    # NaN must fail, and argmax finds it first.
    draw, *entry = (int(i) for i in np.unravel_index(error.argmax(), error.shape))
    entry[-1] += first_column
    worst = float(error.max())
    return CheckRow(*key, worst, tuple(entry), draw, poses[draw], local[draw])


@dataclasses.dataclass(frozen=True)
class CheckCommand:
    """Checks a model's analytic derivatives against automatic ones and differences.

    Draws random parameters and response maps and compares, in float64, every column of
    the PDM's Jacobian, and the gradient and curvature of the objective. Prints the
    worst entry of each block with its parameters. The exit code is 1 if any is beyond
    its tolerance.
    """

    model: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="[MODEL]", help_behavior_hint="(default: the embedded model)"
        ),
    ] = DEFAULT_MODEL
    """An OpenFace main, detector or PDM file, an .npz file
    of jaxclnf, the name of an embedded model, or that of a
    converted one of OpenFace's: see jaxclnf models."""
    draws: int = 24
    """How many random parameters."""
    seed: int = 0
    """Seed of the draws; a worst entry is found again by
    seed and draw."""

    def run(self) -> int:
        """Checks and prints.

        Returns:
            The exit code: 0 all within tolerance, 1 not.

        Raises:
            ArgumentError: The number of draws is not positive, or the seed negative.
            ModelFileError: The model cannot be read.
        """
        if self.draws < 1:
            raise ArgumentError(f"--draws {self.draws}: must be 1 or more")
        if self.seed < 0:
            raise ArgumentError(f"--seed {self.seed}: must be 0 or more")
        pdm = load_pdm(self.model)
        rows = check_model(pdm, num_draws=self.draws, seed=self.seed)
        print(
            f"{self.model}: {pdm.num_landmarks} landmarks, {pdm.num_modes} modes, "
            f"{self.draws} draws with seed {self.seed}; errors relative to each block"
        )
        for row in rows:
            print(_line(row))
        num_bad = sum(not row.passed for row in rows)
        print("all within tolerance" if num_bad == 0 else f"{num_bad} beyond tolerance")
        return 1 if num_bad else 0


def _line(row: CheckRow) -> str:
    pose = ", ".join(f"{x:.4g}" for x in row.params_global)
    largest = int(np.abs(row.params_local).argmax())
    return (
        f"{'ok  ' if row.passed else 'FAIL'} {row.quantity:9} {row.block:11} "
        f"{row.reference:11} {row.error:8.1e} <= {TOLERANCES[row.reference]:.0e}  "
        f"at {row.entry} of draw {row.draw}: pose ({pose}), largest mode {largest} = "
        f"{row.params_local[largest]:.4g}"
    )
