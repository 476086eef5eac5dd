"""The C++ program's float32 geometry: near the exact one, and bit for bit its own."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.shape.pdm import PDMParams, project, retract, shape_3d
from jaxclnf.shape.reference import (
    reference_frame,
    reference_matrix,
    reference_project,
    reference_turn,
)
from jaxclnf.shape.rotation import matrix_from_euler
from jaxclnf.shape.similarity import align_shapes, inverse_similarity
from tests import synthetic
from tests.reference import PARTS, params_from, phases, points, read_model

TOL = 2e-6  # relative; a few roundings of float32
PROFILE_TOL = 1e-4  # near a yaw of 90 degrees the arcsine loses half of the digits

_matrix = jax.jit(reference_matrix)
_turn = jax.jit(reference_turn)
_project = jax.jit(reference_project)
_frame = jax.jit(reference_frame)


def _poses(seed: int = 0, count: int = 40) -> list[PDMParams]:
    """Poses from frontal to beyond profile, float32."""
    rng = np.random.default_rng(seed)
    pdm = synthetic.make_pdm(dtype=np.float32)
    return [
        synthetic.make_params(
            pdm,
            scale=float(rng.uniform(0.3, 3)),
            euler=(*rng.normal(0, 0.2, 1), rng.uniform(-1.9, 1.9), rng.normal(0, 0.3)),
            translation=tuple(rng.uniform(50, 900, 2)),
            modes=float(rng.normal()),
        )
        for _ in range(count)
    ]


def test_turns_are_those_of_retract():
    rng = np.random.default_rng(1)
    for params in _poses():
        w = rng.normal(0, 0.2, 3).astype(np.float32)
        step = jnp.zeros(6, jnp.float32).at[1:4].set(w)
        expected = retract(params, step).rotation
        found = _turn(params.rotation, jnp.asarray(w))
        assert found.dtype == jnp.float32
        assert np.abs(found - expected).max() < PROFILE_TOL
        gram = np.asarray(found, np.float64) @ np.asarray(found, np.float64).T
        assert np.abs(gram - np.eye(3)).max() < TOL


def test_no_step_leaves_a_rotation_as_it_is():
    euler = jnp.asarray([0.2, -0.4, 0.1], jnp.float32)
    rotation = _matrix(euler)
    found = _turn(rotation, jnp.zeros(3, jnp.float32))
    assert np.abs(found - rotation).max() < TOL


def test_half_a_turn_becomes_none_as_in_the_reference():
    """The quaternion's real part is zero there, and its angles are not numbers."""
    half = jnp.asarray(np.diag([1.0, -1.0, -1.0]), jnp.float32)
    np.testing.assert_array_equal(_turn(half, jnp.zeros(3, jnp.float32)), np.eye(3))


def test_projection_and_frame_are_near_the_exact_ones():
    pdm = synthetic.make_pdm(dtype=np.float32)
    scaling = jnp.asarray(0.35, jnp.float32)
    for params in _poses():
        shape = _project(pdm, params)
        exact = project(pdm, params)
        assert np.abs(shape - exact).max() < TOL * float(np.abs(exact).max())
        there, back = _frame(pdm, params, shape, scaling)
        reference = scaling * shape_3d(pdm, params.params_local)[:, :2]
        nearest = align_shapes(shape, reference)
        size = float(jnp.sqrt(jnp.abs(jnp.linalg.det(there))))
        if np.linalg.det(np.asarray(there)) > 0 and _is_clear(shape, reference):
            assert np.abs(there - nearest).max() < 1e-4 * size
            inverse = inverse_similarity(nearest)
            assert np.abs(back - inverse).max() < 1e-4 / size
        assert np.abs(np.asarray(there @ back) - np.eye(2)).max() < 1e-5


def _moment(shape, reference) -> np.ndarray:
    source, target = np.asarray(shape, np.float64), np.asarray(reference, np.float64)
    return (source - source.mean(axis=0)).T @ (target - target.mean(axis=0))


def _is_clear(shape, reference) -> bool:
    """Whether one rotation is clearly the nearest: not so for a face seen edge on."""
    moment = _moment(shape, reference)
    angle = np.hypot(np.trace(moment), moment[0, 1] - moment[1, 0])
    return bool(angle > 0.3 * np.linalg.svd(moment)[1].sum())


def test_frame_of_a_mirrored_shape_is_no_mirror():
    """Beyond profile a projected face is mirrored; its frame must still be turned."""
    pdm = synthetic.make_pdm(dtype=np.float32)
    params = synthetic.make_params(pdm, euler=(0.0, 2.2, 0.0))
    shape = _project(pdm, params)
    reference = shape_3d(pdm, params.params_local)[:, :2]
    assert np.linalg.det(_moment(shape, reference)) < 0
    there, _ = _frame(pdm, params, shape, jnp.asarray(1.0, jnp.float32))
    assert np.linalg.det(np.asarray(there)) > 0


def test_float64_goes_the_exact_way():
    pdm = synthetic.make_pdm()
    params = synthetic.make_params(pdm)
    w = jnp.asarray([0.01, -0.02, 0.03])
    expected = retract(params, jnp.zeros(6).at[1:4].set(w)).rotation
    np.testing.assert_allclose(_turn(params.rotation, w), expected, atol=1e-14)
    np.testing.assert_array_equal(_project(pdm, params), jax.jit(project)(pdm, params))
    euler = jnp.asarray([0.3, 0.2, 0.1])
    np.testing.assert_array_equal(_matrix(euler), jax.jit(matrix_from_euler)(euler))
    there, back = _frame(pdm, params, project(pdm, params), jnp.asarray(0.5))
    np.testing.assert_allclose(there @ back, np.eye(2), atol=1e-14)


def test_batched_is_one_by_one():
    """Also where the batch is made of a function that was compiled before."""
    poses = _poses(count=5)
    many = jax.tree.map(lambda *x: jnp.stack(x), *poses)
    pdm = synthetic.make_pdm(dtype=np.float32)
    w = jnp.full((5, 3), 0.02, jnp.float32)
    turned = jax.jit(jax.vmap(_turn))(many.rotation, w)
    shapes = jax.jit(jax.vmap(_project, (None, 0)))(pdm, many)
    scaling = jnp.asarray(0.5, jnp.float32)
    frames = jax.jit(jax.vmap(_frame, (None, 0, 0, None)))(pdm, many, shapes, scaling)
    for i, pose in enumerate(poses):
        np.testing.assert_array_equal(turned[i], _turn(pose.rotation, w[i]))
        np.testing.assert_array_equal(shapes[i], _project(pdm, pose))
        one = _frame(pdm, pose, shapes[i], scaling)
        np.testing.assert_allclose(frames[0][i], one[0], rtol=TOL, atol=1e-6)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["clnf_general", "clnf_wild"])
def test_bits_of_the_reference(golden: Path, openface_dir: Path, configuration: str):
    turns, shapes, frames = [], [], []
    for facts, rigid, arrays in phases(golden, configuration):
        name = PARTS.get(facts["model"], configuration)
        model = read_model(openface_dir, name)
        for t in range(len(arrays["it_update"])):
            vector = jnp.asarray(arrays["it_global"][t].reshape(-1))
            local = jnp.asarray(arrays["it_local"][t].reshape(-1))
            params = PDMParams(
                scale=vector[0],
                rotation=_matrix(vector[1:4]),
                translation=vector[4:],
                params_local=local,
            )
            shape = _project(model.pdm, params)
            shapes.append(np.asarray(shape == points(arrays["it_shape"][t])).ravel())
            last = t + 1 == len(arrays["it_update"])
            after = arrays["global_end"] if last else arrays["it_global"][t + 1]
            update = jnp.asarray(arrays["it_update"][t].reshape(-1))
            turned = _turn(params.rotation, update[1:4])
            expected = _matrix(jnp.asarray(after.reshape(-1)[1:4]))
            turns.append(np.asarray(turned == expected).ravel())
            if t == 0 and rigid:
                scaling = model.experts[facts["scale"]].patch_scaling
                there, _ = _frame(model.pdm, params, shape, scaling)
                frames.append(np.abs(there - arrays["sim_img_to_ref"]).max())
    assert np.mean(np.concatenate(turns)) == 1  # every rotation, to the last bit
    assert np.mean(np.concatenate(shapes)) > 0.99
    assert np.max(frames) < 3e-7


def test_params_from_keeps_the_vector():
    """The tests above start from the reference's own vectors."""
    vector = np.array([1.5, 0.1, 0.2, 0.3, 10, 20], np.float32)
    params = params_from(vector, np.zeros(4, np.float32))
    np.testing.assert_allclose(params.params_global, vector, rtol=1e-6)
