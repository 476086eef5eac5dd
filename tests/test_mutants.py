"""The ten faults are noticed, the four harmless changes lead to an end all the same."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from faults import CONTROLS, MUTANTS, SOUND, STEPS, Case, Fault, injected
from mutants import Runs, is_caught, run, run_all

from jaxclnf.diagnosis.findings import Kind
from jaxclnf.experts.responses import response_maps
from jaxclnf.solver import steps
from tests import synthetic

MAX_STEPS = 60
TESTS = Path(__file__).parent

QUICK = ("offset from the wrong base shape", "prior missing", "scaled maps")
"""What the default run looks at, with the plain step."""

CAUSES = {
    "offset from the wrong base shape": "measured from the present shape",
    "kernel bandwidth overwritten": "another bandwidth",
    "stacked and interleaved mixed": "stacked mean shifts",
    "image and reference swapped": "img_from_ref instead of ref_from_img",
    "x and y swapped": "x and y of the offset are swapped",
    "prior with the wrong sign": "the prior has the wrong sign",
    "prior missing": "the prior is missing",
    "wrong sign in a Jacobian column": "column is wrong: yaw",
    "centre of the window": "the window's centre is w / 2",
    "Euler-angle Jacobian": "along Euler angles",
}
"""What `diagnose` names as the cause under the plain step, non-rigid phase."""


@pytest.fixture(scope="module")
def case(example: dict) -> Case:
    pdm = example["pdm"]
    before = synthetic.make_params(
        pdm, scale=1.0, euler=(0.1, 0.1, -0.1), translation=(122.0, 117.0), modes=0.0
    )
    earlier = jax.jit(response_maps, static_argnames="window_size")(
        pdm, example["model"].experts[0], jnp.asarray(example["image"]), before, 7
    )
    return Case(pdm, example["responses"], earlier, example["params"])


def _quick(faults: tuple[Fault, ...]) -> list:
    return [
        pytest.param(
            fault,
            id=fault.name,
            marks=() if fault.name in QUICK else pytest.mark.slow,
        )
        for fault in faults
    ]


@pytest.mark.parametrize("fault", _quick(MUTANTS))
def test_a_fault_is_noticed_and_named(case, fault):
    found = run(fault, case, "plain", False, MAX_STEPS).diagnosis
    assert found.problems, str(found)
    causes = [x.evidence.get("cause") for x in found.problems]
    if fault.name == "bounds not enforced":
        assert found.kinds[0] == Kind.BOUND_IGNORED
    elif fault.name == "maps of an earlier shape":
        assert found.kinds[0] == Kind.WRONG_MEAN_SHIFT and causes[0] is None
    else:
        assert CAUSES[fault.name] in (causes[0] or "")


def test_a_wrong_base_shape_is_the_step_that_never_shrinks(case):
    fault = MUTANTS[0]
    found = run(fault, case, "plain", True, MAX_STEPS).diagnosis
    assert Kind.CONSTANT_STEP in found.kinds and not found.converges


@pytest.mark.parametrize("fault", _quick(CONTROLS))
def test_a_control_is_not_called_non_convergence(case, fault):
    found = run(fault, case, "plain", False, MAX_STEPS).diagnosis
    assert found.converges, str(found)
    assert {Kind.CONVERGED, Kind.FALSE_CONVERGENCE} & set(found.kinds)
    if fault.name in CAUSES:
        assert CAUSES[fault.name] in found.problems[0].evidence["cause"]
    else:
        assert found.kinds == (Kind.CONVERGED,)


@pytest.mark.slow
def test_the_sound_solver_has_no_problem(case):
    for key, runs in run_all(SOUND, [case], MAX_STEPS).items():
        assert runs[0].diagnosis.kinds == (Kind.CONVERGED,), key
        assert runs[0].falls == 0


@pytest.fixture(scope="module")
def guarded(case: Case) -> Runs:
    return {"": [run(SOUND, case, "guarded", False, MAX_STEPS)]}


@pytest.mark.slow
@pytest.mark.parametrize("fault", MUTANTS + CONTROLS, ids=lambda x: x.name)
def test_the_guarded_step_too(case, guarded, fault):
    runs = {"": [run(fault, case, "guarded", False, MAX_STEPS)]}
    if fault.is_control:
        assert runs[""][0].diagnosis.converges, str(runs[""][0].diagnosis)
    else:
        assert is_caught(fault, runs, guarded), str(runs[""][0].diagnosis)


def test_the_library_is_as_it_was_afterwards(case):
    before, names = dict(vars(steps)), set(steps.STEPS)
    for fault in MUTANTS + CONTROLS:
        with injected(fault, case, "plain") as solver:
            assert solver in steps.STEPS
    assert dict(vars(steps)) == before and set(steps.STEPS) == names


def test_a_function_that_is_gone_is_an_error(case):
    def gone() -> None: ...

    fault = Fault("gone", lambda case: [(gone, gone)])
    with pytest.raises(LookupError, match="gone: jaxclnf.solver has no gone any more"):
        with injected(fault, case, "plain"):
            pass


def test_every_fault_names_the_test_that_catches_it():
    assert (
        len(MUTANTS) == 10
        and len(CONTROLS) == 4
        and set(STEPS)
        == {
            "plain",
            "guarded",
        }
    )
    assert set(CAUSES) <= {fault.name for fault in MUTANTS + CONTROLS}
    sources = {}
    for fault in MUTANTS:
        file, _, name = fault.caught_by.partition("::")
        source = sources.setdefault(file, (TESTS / file).read_text(encoding="utf-8"))
        assert f"def {name}(" in source
