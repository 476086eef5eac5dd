"""Ten errors that people make in such solvers, and four changes that are none.

Each is put into the solver by replacing functions in `jaxclnf.solver` for a while: the
library itself has no switch for them. A run under a fault has a solver name of its own,
so that no compiled program of the sound solver is met.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxclnf import PDM, NURLMSOptions, NURLMSState, PDMParams, ResponseMaps, Status
from jaxclnf.shape import pdm as shape_pdm
from jaxclnf.solver import box, evidence, objective, quadratic, steps


@dataclasses.dataclass(frozen=True)
class Case:
    """One phase to run."""

    pdm: PDM
    """The shape model."""
    responses: ResponseMaps
    """Its maps."""
    earlier: ResponseMaps
    """Maps around another shape, where the face was before."""
    params: PDMParams
    """Where it starts."""


Replacements = list[tuple[Callable, Callable]]
"""Functions of the solver, each with what is put in its place."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One change of the solver."""

    name: str
    """What it is."""
    replacements: Callable[[Case], Replacements]
    """What is replaced by what."""
    is_control: bool = False
    """Whether it must not count as non-convergence."""
    caught_by: str = ""
    """A unit test of the library that fails under it."""
    changes: dict[str, float] = dataclasses.field(default_factory=dict)
    """Options under which it matters."""
    per_case: bool = False
    """Whether the replacements differ from case to case."""


def plain_step(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """NU-RLMS as it was published: a step is never refused, modes are clipped after it.

    Args:
        pdm: The shape model.
        responses: The maps.
        state: The state before.
        options: The phase's options.
        rigid: Move the pose only.

    Returns:
        The state after.
    """
    params = state.params
    columns, slope, normal = quadratic.em_quadratic(
        pdm, responses, params, state.evidence, options, rigid
    )
    step = box.solve(normal, slope)
    moved = steps.retract(params, step)
    if not rigid:
        moved = steps.clamp(pdm, moved, options.n_sigmas)
    found = evidence.evaluate(pdm, responses, moved, options)
    terms = objective.objective_terms(pdm, responses, moved, found, options)
    change = jnp.sum(columns * step[None, None, :], axis=-1)
    length = jnp.sqrt(jnp.sum(change**2))
    count = state.num_steps + 1
    status = jnp.where(count >= options.max_steps, Status.MAX_STEPS, Status.RUNNING)
    status = jnp.where(length < options.shape_tol, Status.CONVERGED, status)
    status = jnp.where(jnp.isfinite(length), status, Status.NONFINITE)
    return dataclasses.replace(
        state,
        params=moved,
        evidence=found,
        objective=jnp.sum(terms),
        shape_delta=length,
        previous_shape=state.evidence.shape,
        num_steps=count,
        status=status.astype(jnp.int32),
    )


STEPS = {"plain": plain_step, "guarded": steps.em_step}
"""The steps into which faults are put: NU-RLMS as published, and the library's `em`,
which refuses a step along which its F falls."""

_counter = itertools.count()


@contextmanager
def injected(fault: Fault, case: Case, step: str) -> Iterator[str]:
    """Puts a fault into the solver for the duration of the block.

    Args:
        fault: The fault.
        case: The phase that will be run.
        step: A key of `STEPS`.

    Yields:
        The name for `NURLMSOptions.solver` under which to run.

    Raises:
        LookupError: A function to be replaced is nowhere in the solver.
    """
    name = f"{step}: {fault.name}"
    if fault.per_case:
        name += f" {next(_counter)}"
    undo: list[tuple[Any, str, Any]] = []
    try:
        for original, faulty in fault.replacements(case):
            places = list(_places(original))
            if not places:
                raise LookupError(
                    f"{fault.name}: jaxclnf.solver has no {original.__name__} any more"
                )
            for module, attribute in places:
                undo.append((module, attribute, original))
                setattr(module, attribute, faulty)
        steps.STEPS[name] = STEPS[step]
        yield name
    finally:
        steps.STEPS.pop(name, None)
        for module, attribute, original in reversed(undo):
            setattr(module, attribute, original)


def _places(function: Callable) -> Iterator[tuple[Any, str]]:
    """Every name in the solver's modules that is bound to a function."""
    for name, module in list(sys.modules.items()):
        if name.startswith("jaxclnf.solver."):
            for attribute, value in list(vars(module).items()):
                if value is function:
                    yield module, attribute


def _with_positions(change: Callable) -> Callable[[Case], Replacements]:
    original = evidence.landmark_positions
    return lambda case: [
        (original, lambda responses, shape: change(original, responses, shape))
    ]


def _with_evaluate(change: Callable) -> Callable[[Case], Replacements]:
    original = evidence.evaluate

    def replacements(case: Case) -> Replacements:
        def faulty(pdm, responses, params, options, **flags):
            sound = partial(original, **flags)
            return change(sound, case, pdm, responses, params, options)

        return [(original, faulty)]

    return replacements


def _present_base(original, responses, shape):
    return original(dataclasses.replace(responses, base_shape=shape), shape)


def _swapped_positions(original, responses, shape):
    return original(responses, shape)[:, ::-1]


def _half_a_pixel(original, responses, shape):
    return original(responses, shape) + 0.5


def _overwritten_exponent(original, case, pdm, responses, params, options):
    """`a`, the factor of the exponent, has become the `a` of the similarity."""
    shape = shape_pdm.project(pdm, params)
    positions = evidence.landmark_positions(responses, shape)
    n, w, _ = responses.maps.shape
    a = responses.ref_from_img[0, 0]
    grid = jnp.arange(w, dtype=shape.dtype)
    across = (grid[None, None, :] - positions[:, 0, None, None]) ** 2
    down = (grid[None, :, None] - positions[:, 1, None, None]) ** 2
    exponent = a * (across + down)
    largest = jnp.max(exponent, axis=(1, 2), keepdims=True)
    weights = jnp.maximum(responses.maps, 0) * jnp.exp(exponent - largest)
    total = jnp.sum(weights, axis=(1, 2))
    empty = total == 0
    safe = jnp.where(empty, 1, total)
    column = jnp.sum(weights * grid[None, None, :], axis=(1, 2)) / safe
    row = jnp.sum(weights * grid[None, :, None], axis=(1, 2)) / safe
    shifts = jnp.stack([column, row], axis=-1) - positions
    shifts = jnp.matmul(shifts, responses.img_from_ref.T, precision="highest")
    return evidence.Evidence(
        shape=shape,
        log_densities=jnp.where(empty, -jnp.inf, jnp.log(safe) + largest[:, 0, 0]),
        mean_shifts=jnp.where(empty[:, None], 0, shifts),
    )


def _interleaved(original, case, pdm, responses, params, options):
    found = original(pdm, responses, params, options)
    stacked = found.mean_shifts.T.reshape(-1)
    return dataclasses.replace(found, mean_shifts=stacked.reshape(-1, 2))


def _swapped_transforms(original, case, pdm, responses, params, options):
    swapped = dataclasses.replace(
        responses,
        ref_from_img=responses.img_from_ref,
        img_from_ref=responses.ref_from_img,
    )
    return original(pdm, swapped, params, options)


def _earlier_maps(original, case, pdm, responses, params, options):
    stale = dataclasses.replace(responses, maps=case.earlier.maps)
    return original(pdm, stale, params, options)


def _scaled_maps(original, case, pdm, responses, params, options):
    largest = jnp.max(responses.maps, axis=(1, 2), keepdims=True)
    scaled = responses.maps / jnp.where(largest > 0, largest, 1)
    return original(pdm, dataclasses.replace(responses, maps=scaled), params, options)


def _with_prior(factor: float) -> Callable[[Case], Replacements]:
    original = quadratic.normal_equations

    def faulty(params, columns, weights, shifts, precision):
        _, normal = original(params, columns, weights, shifts, precision)
        slope, _ = original(params, columns, weights, shifts, factor * precision)
        return slope, normal

    return lambda case: [(original, faulty)]


def _with_jacobian(change: Callable) -> Callable[[Case], Replacements]:
    original = quadratic.phase_jacobian

    def faulty(pdm, params, rigid):
        return change(original(pdm, params, rigid), params)

    return lambda case: [(original, faulty)]


def _yaw_negated(columns, params):
    return columns.at[:, :, 2].multiply(-1)


def _along_euler_angles(columns, params):
    rotation = params.rotation
    roll = jnp.arctan2(-rotation[0, 1], rotation[0, 0])
    zero = jnp.zeros_like(roll)
    pitch_axis, roll_axis = rotation[0], jnp.stack([zero, zero, zero + 1])
    yaw_axis = jnp.stack([jnp.sin(roll), jnp.cos(roll), zero])
    rates = jnp.stack([pitch_axis, yaw_axis, roll_axis], axis=-1)
    turned = jnp.einsum("naw,we->nae", columns[:, :, 1:4], rates, precision="highest")
    return columns.at[:, :, 1:4].set(turned)


def _unbounded(case: Case) -> Replacements:
    return [
        (shape_pdm.clamp, lambda pdm, params, n_sigmas=3.0: params),
        (shape_pdm.mode_bounds, lambda pdm, n: jnp.full_like(pdm.eigen_values, 1e6)),
    ]


def _damped(case: Case) -> Replacements:
    original = shape_pdm.retract
    return [(original, lambda params, delta: original(params, 0.5 * delta))]


_STEP = "test_steps.py::test_a_step_is_the_dense_solve"
_OPTIMUM = "test_steps.py::test_the_fixed_point_is_a_constrained_optimum"

MUTANTS = (
    Fault(
        "offset from the wrong base shape",
        _with_positions(_present_base),
        caught_by=_STEP,
    ),
    Fault(
        "kernel bandwidth overwritten",
        _with_evaluate(_overwritten_exponent),
        caught_by=_STEP,
    ),
    Fault(
        "stacked and interleaved mixed", _with_evaluate(_interleaved), caught_by=_STEP
    ),
    Fault(
        "image and reference swapped",
        _with_evaluate(_swapped_transforms),
        caught_by=_STEP,
    ),
    Fault("x and y swapped", _with_positions(_swapped_positions), caught_by=_STEP),
    Fault("prior with the wrong sign", _with_prior(-1.0), caught_by=_STEP),
    Fault("prior missing", _with_prior(0.0), caught_by=_STEP),
    Fault(
        "bounds not enforced",
        _unbounded,
        caught_by=_OPTIMUM,
        changes={"n_sigmas": 0.25, "reg_factor": 1.0},
    ),
    Fault(
        "maps of an earlier shape",
        _with_evaluate(_earlier_maps),
        caught_by=_STEP,
        per_case=True,
    ),
    Fault(
        "wrong sign in a Jacobian column",
        _with_jacobian(_yaw_negated),
        caught_by=_STEP,
    ),
)
"""The ten faults."""

CONTROLS = (
    Fault("scaled maps", _with_evaluate(_scaled_maps), is_control=True),
    Fault("damping", _damped, is_control=True),
    Fault("centre of the window", _with_positions(_half_a_pixel), is_control=True),
    Fault("Euler-angle Jacobian", _with_jacobian(_along_euler_angles), is_control=True),
)
"""Four changes that still lead to a fixed point."""

SOUND = Fault("sound", lambda case: [], is_control=True)
"""No change at all."""
