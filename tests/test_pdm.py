"""Shape, projection, Jacobian, retraction, parameters from boxes and landmarks."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from jaxclnf.shape.initial import (
    _converged_step,
    _Search,
    _Target,
    params_from_box,
    params_from_landmarks,
)
from jaxclnf.shape.pdm import (
    PDM,
    PDMParams,
    bounding_box,
    clamp,
    jacobian,
    mode_bounds,
    project,
    retract,
    rigid_jacobian,
    shape_3d,
)
from jaxclnf.shape.rotation import matrix_from_euler
from jaxclnf.shape.similarity import (
    align_shapes,
    inverse_similarity,
    similarity_matrix,
)
from tests import synthetic

TOL = 1e-11  # float64 rounding of pixels up to 1000
PX = 2e-4  # px; the landmark search stops at a step of 1e-4

NUM_MODES = 4
SIZE = 6 + NUM_MODES
# No subnormal numbers in examples: XLA's CPU code takes those for zero.
few_examples = settings(max_examples=20, deadline=None, derandomize=True)

EULERS = {
    "zero": (0.0, 0.0, 0.0),
    "tiny": (1e-9, -1e-9, 1e-9),
    "profile": (0.3, np.pi / 2, -0.4),
    "near profile": (0.3, np.pi / 2 - 1e-7, -0.4),
    "other profile": (-0.2, -np.pi / 2, 0.9),
    "upside down": (0.1, 0.2, np.pi),
}


@pytest.fixture(scope="module")
def pdm() -> PDM:
    return synthetic.make_pdm(num_modes=NUM_MODES)


@jax.jit
def _moved(pdm, params, delta):
    return project(pdm, retract(params, delta))


_automatic = jax.jit(jax.jacfwd(_moved, argnums=2))
_analytic = jax.jit(jacobian)
_rigid = jax.jit(rigid_jacobian)
_project = jax.jit(project)
_from_box = jax.jit(params_from_box)
_from_landmarks = jax.jit(
    params_from_landmarks, static_argnames=("dialect", "max_steps")
)
_align = jax.jit(align_shapes)


def _random_params(pdm: PDM, seed: int, euler=None) -> PDMParams:
    rng = np.random.default_rng(seed)
    if euler is None:
        euler = rng.uniform(-1.5, 1.5, 3)
    vector = np.concatenate([rng.uniform(0.3, 5, 1), euler, rng.uniform(0, 900, 2)])
    local = rng.uniform(-3, 3, pdm.num_modes) * np.sqrt(pdm.eigen_values)
    return PDMParams.from_global(jnp.asarray(vector), jnp.asarray(local))


POSES = [*EULERS, *range(6)]


@pytest.fixture(params=POSES, ids=str)
def params(request: pytest.FixtureRequest, pdm: PDM) -> PDMParams:
    return _random_params(pdm, POSES.index(request.param), EULERS.get(request.param))


def test_projection_against_numpy(pdm, params):
    shape = np.asarray(pdm.mean_shape) + np.tensordot(
        pdm.princ_comp, params.params_local, axes=1
    )
    np.testing.assert_allclose(shape_3d(pdm, params.params_local), shape, atol=TOL)
    scale, *euler, tx, ty = np.asarray(params.params_global)
    rotation = Rotation.from_euler("XYZ", euler).as_matrix()
    expected = scale * (shape @ rotation.T)[:, :2] + [tx, ty]
    np.testing.assert_allclose(_project(pdm, params), expected, rtol=0, atol=TOL)


def test_jacobian_three_ways(pdm, params):
    analytic = np.asarray(_analytic(pdm, params))
    assert analytic.shape == (pdm.num_landmarks, 2, SIZE)
    np.testing.assert_allclose(analytic[..., :6], _rigid(pdm, params), rtol=0, atol=TOL)
    automatic = _automatic(pdm, params, jnp.zeros(SIZE))
    np.testing.assert_allclose(analytic, automatic, rtol=0, atol=TOL)
    steps = 0.01 / np.abs(analytic).max(axis=(0, 1))  # about 0.01 px
    for k, step in enumerate(np.diag(steps)):
        near = _moved(pdm, params, step) - _moved(pdm, params, -step)
        far = _moved(pdm, params, 2 * step) - _moved(pdm, params, -2 * step)
        difference = (8 * near - far) / (12 * steps[k])
        np.testing.assert_allclose(
            analytic[..., k],
            difference,
            rtol=0,
            atol=1e-9 * np.abs(analytic[..., k]).max(),  # 1000 px * eps / 0.01 px
        )


@few_examples
@given(
    shift=hnp.arrays(
        np.float64, 2, elements=st.floats(-1e3, 1e3, allow_subnormal=False)
    ),
    factor=st.floats(0.01, 100),
)
def test_projection_follows_translation_and_scale(pdm, shift, factor):
    params = _random_params(pdm, 3)
    before = np.asarray(_project(pdm, params))
    moved = dataclasses.replace(params, translation=params.translation + shift)
    np.testing.assert_allclose(_project(pdm, moved), before + shift, atol=TOL)
    grown = dataclasses.replace(params, scale=params.scale * factor)
    centre = np.asarray(params.translation)
    expected = centre + factor * (before - centre)
    np.testing.assert_allclose(_project(pdm, grown), expected, rtol=1e-13, atol=TOL)


@pytest.mark.parametrize("size", [6, SIZE])
def test_retract_by_zero_is_the_identity(pdm, params, size):
    back = retract(params, jnp.zeros(size))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-15), back, params
    )


def test_retract_by_six_entries_moves_the_pose_alone(pdm):
    params = _random_params(pdm, 1)
    delta = jnp.asarray([0.1, 0.2, -0.1, 0.3, 5.0, -7.0])
    moved = retract(params, delta)
    np.testing.assert_array_equal(moved.params_local, params.params_local)
    longer = retract(params, jnp.concatenate([delta, jnp.zeros(NUM_MODES)]))
    jax.tree.map(np.testing.assert_array_equal, moved, longer)


def test_rotation_stays_one_through_many_float32_steps(pdm):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), _random_params(pdm, 2))
    steps = np.random.default_rng(0).normal(0, 0.3, (2000, 6)).astype(np.float32)
    walk = jax.jit(lambda p, s: jax.lax.scan(lambda q, d: (retract(q, d), None), p, s))
    rotation = np.asarray(walk(params, steps)[0].rotation)
    assert rotation.dtype == np.float32
    assert np.abs(rotation.T @ rotation - np.eye(3)).max() < 1e-6  # a few roundings


@few_examples
@given(
    local=hnp.arrays(
        np.float64, NUM_MODES, elements=st.floats(-1e3, 1e3, allow_subnormal=False)
    ),
    n_sigmas=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_clamp_is_idempotent_and_keeps_the_pose(pdm, local, n_sigmas):
    params = dataclasses.replace(
        _random_params(pdm, 0), params_local=jnp.asarray(local)
    )
    limited = clamp(pdm, params, n_sigmas)
    bound = mode_bounds(pdm, n_sigmas)
    assert np.all(np.abs(limited.params_local) <= bound)
    inside = np.abs(local) <= bound
    np.testing.assert_array_equal(limited.params_local[inside], local[inside])
    np.testing.assert_array_equal(limited.rotation, params.rotation)
    jax.tree.map(np.testing.assert_array_equal, clamp(pdm, limited, n_sigmas), limited)


@few_examples
@given(
    points=hnp.arrays(
        np.float64, (5, 2), elements=st.floats(-1e6, 1e6, allow_subnormal=False)
    ),
)
def test_bounding_box(points):
    x, y, width, height = np.asarray(bounding_box(jnp.asarray(points)))
    low, high = points.min(axis=0), points.max(axis=0)
    assert (x, y) == tuple(low)
    np.testing.assert_array_equal([width, height], high - low)


@pytest.mark.parametrize("euler", EULERS.values(), ids=EULERS)
def test_params_from_box_fill_it(pdm, euler):
    """Both sides at once only where the box has the face's own proportions."""
    rotation = matrix_from_euler(jnp.asarray(euler))
    local = jnp.asarray([5.0, -3.0, 2.0, 1.0])
    flat = PDMParams(
        scale=jnp.asarray(1.7),
        rotation=rotation,
        translation=jnp.asarray([300.0, 200.0]),
        params_local=local,
    )
    box = bounding_box(_project(pdm, flat))
    found = _from_box(pdm, box, rotation, local)
    np.testing.assert_allclose(found.scale, 1.7, rtol=1e-12)
    np.testing.assert_allclose(_project(pdm, found), _project(pdm, flat), atol=TOL)
    wide = box * jnp.asarray([1.0, 1.0, 1.2, 1.0])
    found = _from_box(pdm, wide, rotation, local)
    np.testing.assert_allclose(found.scale, 1.7 * 1.1, rtol=1e-12)
    filled = np.asarray(bounding_box(_project(pdm, found)))
    np.testing.assert_allclose(
        filled[:2] + filled[2:] / 2, wide[:2] + wide[2:] / 2, atol=TOL
    )


def test_params_from_box_are_frontal_without_modes(pdm):
    found = _from_box(pdm, jnp.asarray([10.0, 20.0, 100.0, 80.0]))
    np.testing.assert_array_equal(found.rotation, np.eye(3))
    np.testing.assert_array_equal(found.params_local, np.zeros(NUM_MODES))


def _residuals(pdm: PDM, landmarks, visible, base: PDMParams):
    arrays = [np.asarray(x) for x in (pdm.mean_shape, pdm.princ_comp, pdm.eigen_values)]
    mean, modes, variances = arrays
    rotation = Rotation.from_matrix(base.rotation)

    def residuals(x: np.ndarray) -> np.ndarray:
        turned = (rotation * Rotation.from_rotvec(x[1:4])).as_matrix()
        shape = mean + modes @ x[6:]
        points = x[0] * (shape @ turned.T)[:, :2] + x[4:6]
        data = (points - landmarks)[visible].ravel()
        return np.concatenate([data, x[6:] / np.sqrt(variances)])

    return residuals


@pytest.mark.parametrize("hidden", [(), (0, 5, 11)], ids=["all", "some hidden"])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_params_from_landmarks_against_scipy(pdm, hidden, noise):
    truth = synthetic.make_params(pdm, scale=4.0, euler=(0.2, -0.3, 0.4), modes=0.8)
    rng = np.random.default_rng(4)
    landmarks = np.asarray(_project(pdm, truth)) + rng.normal(0, noise, (12, 2))
    visible = ~np.isin(np.arange(12), hidden)
    found = _from_landmarks(pdm, jnp.asarray(landmarks), visible=jnp.asarray(visible))
    residuals = _residuals(pdm, landmarks, visible, found)
    start = np.concatenate(
        [found.scale[None], np.zeros(3), found.translation, found.params_local]
    )
    scipy_start = start + np.concatenate([[0.1], np.full(3, 0.02), [1, -1], np.ones(4)])
    best = scipy.optimize.least_squares(
        residuals, scipy_start, xtol=1e-15, ftol=1e-15, gtol=1e-12, x_scale="jac"
    )
    np.testing.assert_allclose(np.sum(residuals(start) ** 2), 2 * best.cost, rtol=1e-6)
    end = retract(
        dataclasses.replace(
            found,
            scale=jnp.asarray(best.x[0]),
            rotation=jnp.asarray(
                found.rotation @ Rotation.from_rotvec(best.x[1:4]).as_matrix()
            ),
            translation=jnp.asarray(best.x[4:6]),
            params_local=jnp.asarray(best.x[6:]),
        ),
        jnp.zeros(6),
    )
    difference = np.asarray(_project(pdm, found) - _project(pdm, end))
    assert np.abs(difference).max() < PX


@pytest.mark.parametrize("dialect", ["converged", "openface"])
@pytest.mark.parametrize("garbage", [1e6, np.nan, np.inf])
def test_params_from_landmarks_recover_the_truth(pdm, dialect, garbage):
    """The prior is worth 1 px^2, so a face of 600 px feels little of it."""
    truth = synthetic.make_params(pdm, scale=5.0, euler=(0.1, -0.4, 0.2), modes=0.5)
    landmarks = np.array(_project(pdm, truth))
    visible = np.arange(12) != 7
    landmarks[7] = garbage
    found = _from_landmarks(
        pdm, jnp.asarray(landmarks), visible=jnp.asarray(visible), dialect=dialect
    )
    distance = np.abs(np.asarray(_project(pdm, found) - _project(pdm, truth)))
    tolerance = {"converged": 0.1, "openface": 1.0}[dialect]  # that one stops early
    assert distance.max() < tolerance
    np.testing.assert_allclose(found.scale, truth.scale, rtol=0.01)
    np.testing.assert_allclose(found.euler, truth.euler, rtol=0, atol=0.03)


def test_params_from_landmarks_start_where_told(pdm):
    """From the front, a profile turned beyond 90 degrees is not always found."""
    truth = synthetic.make_params(pdm, scale=4.0, euler=(0.1, 1.5, 0.2))
    landmarks = _project(pdm, truth)
    rotation = matrix_from_euler(jnp.asarray([0.0, 1.3, 0.0]))
    found = _from_landmarks(pdm, landmarks, rotation=rotation)
    assert np.abs(_project(pdm, found) - landmarks).max() < 0.1


def test_params_from_landmarks_in_float32_far_from_the_origin(pdm):
    truth = synthetic.make_params(pdm, scale=2.0, translation=(4000.0, 3000.0))
    landmarks = _project(pdm, truth)
    low = jax.tree.map(lambda x: x.astype(jnp.float32), pdm)
    found = _from_landmarks(low, landmarks.astype(jnp.float32))
    assert found.scale.dtype == jnp.float32
    reference = _from_landmarks(pdm, landmarks)
    np.testing.assert_allclose(found.scale, reference.scale, rtol=1e-4)
    near = np.asarray(found.params_local) - np.asarray(reference.params_local)
    assert np.abs(near).max() < 0.01  # mm


def test_params_from_landmarks_never_leave_nan_behind_a_good_start(pdm):
    """Landmarks all in one place give no scale, but finite input hangs nowhere."""
    found = _from_landmarks(pdm, jnp.full((12, 2), 50.0))
    assert np.all(np.isfinite(_project(pdm, found)))


def test_params_from_landmarks_take_the_precision_of_the_model(pdm):
    points = np.asarray(pdm.mean_shape[:, :2])
    turn = jnp.eye(3, dtype=np.float32)
    found = params_from_landmarks(pdm, jnp.float32(points), rotation=turn)
    assert {x.dtype for x in jax.tree.leaves(found)} == {pdm.mean_shape.dtype}


def test_params_from_landmarks_of_nan_end_at_once(pdm):
    """Each of the thousand steps that a search may take would be as bad."""
    nothing = jnp.full((12, 2), jnp.nan)
    state = jax.jit(
        lambda target: _converged_step(
            pdm,
            _Target(target, jnp.ones((12, 1))),
            _Search(
                synthetic.make_params(pdm),
                jnp.full((), jnp.nan),
                jnp.zeros((), jnp.int32),
                jnp.zeros((), jnp.int32),
                jnp.zeros((), bool),
            ),
        )
    )(nothing)
    assert bool(state.done)
    assert np.isnan(_project(pdm, _from_landmarks(pdm, nothing))).all()


def test_unknown_dialect(pdm):
    unchecked = inspect.unwrap(params_from_landmarks)  # as users run it
    with pytest.raises(ValueError, match="dialect is 'other'"):
        unchecked(pdm, jnp.zeros((12, 2)), dialect="other")


def _points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 30, (12, 2)) + 100, rng.normal(0, 30, (12, 2)) - 50


@pytest.mark.parametrize("hidden", [(), (1, 4)], ids=["all", "some hidden"])
def test_alignment_is_the_least_squares_rotation(hidden):
    source, target = _points(0)
    keep = ~np.isin(np.arange(12), hidden)
    visible = jnp.asarray(keep) if hidden else None
    found = _align(jnp.asarray(source), jnp.asarray(target), visible)
    a, b = source[keep], target[keep]
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, _, vt = np.linalg.svd(b.T @ a)
    flip = np.diag([1.0, np.linalg.det(u @ vt)])
    scale = np.sqrt(np.sum(b**2) / np.sum(a**2))
    np.testing.assert_allclose(found, scale * u @ flip @ vt, rtol=0, atol=TOL)


@pytest.mark.parametrize("garbage", [1e9, np.nan])
def test_alignment_ignores_hidden_points(garbage):
    source, target = _points(1)
    visible = jnp.asarray(np.arange(12) > 1)
    expected = _align(jnp.asarray(source[2:]), jnp.asarray(target[2:]))
    source[:2], target[0] = garbage, -garbage
    found = _align(jnp.asarray(source), jnp.asarray(target), visible)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOL)


def test_alignment_recovers_a_similarity_and_its_inverse():
    source, _ = _points(2)
    matrix = np.asarray([[1.2, -0.7], [0.7, 1.2]])
    target = source @ matrix.T + [7.0, -3.0]
    there = _align(jnp.asarray(source), jnp.asarray(target))
    np.testing.assert_allclose(there, matrix, rtol=0, atol=TOL)
    np.testing.assert_allclose(
        inverse_similarity(there), np.linalg.inv(matrix), rtol=0, atol=TOL
    )
    back = _align(jnp.asarray(target), jnp.asarray(source))
    np.testing.assert_allclose(back, np.linalg.inv(matrix), rtol=0, atol=TOL)
    np.testing.assert_array_equal(
        similarity_matrix(jnp.asarray(1.2), jnp.asarray(0.7)), matrix
    )


def test_alignments_there_and_back_are_inverse_for_unlike_shapes_too():
    source, target = (jnp.asarray(x) for x in _points(3))
    product = _align(source, target) @ _align(target, source)
    np.testing.assert_allclose(product, np.eye(2), rtol=0, atol=TOL)


def test_float32_in_float32_out(pdm):
    to_float32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    low, params = to_float32(pdm), to_float32(_random_params(pdm, 1))
    box = jnp.asarray([1.0, 2.0, 30.0, 40.0], jnp.float32)
    outputs = (
        project(low, params),
        jacobian(low, params),
        retract(params, jnp.zeros(SIZE, jnp.float32)),
        clamp(low, params),
        params.params_global,
        _from_box(low, box),
        _align(low.mean_shape[:, :2], low.mean_shape[:, 1:]),
    )
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


def test_wrong_shapes_are_refused(pdm, params):
    for size in (5, 7, 6 + pdm.num_modes + 1):
        with pytest.raises(
            ValueError, match=rf"delta has shape \({size},\); expected 6"
        ):
            retract(params, jnp.zeros(size))
    with pytest.raises(ValueError, match=r"landmarks have shape \(1, 2\); expected"):
        inspect.unwrap(params_from_landmarks)(pdm, jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"box has shape \(3,\); expected \(x, y, wid"):
        inspect.unwrap(params_from_box)(pdm, [1.0, 2.0, 3.0])
    found = inspect.unwrap(params_from_box)(pdm, [10, 20, 90, 80])
    assert {x.dtype for x in jax.tree.leaves(found)} == {pdm.mean_shape.dtype}


def test_bounds_are_in_the_precision_of_the_model():
    """A number of float64 would make a loop of another type."""
    pdm = synthetic.make_pdm(dtype=np.float32)
    for n_sigmas in (3, 3.0, np.float64(3), jnp.asarray(3.0)):
        assert inspect.unwrap(mode_bounds)(pdm, n_sigmas).dtype == np.float32
