"""Shape models from 2D landmarks alone, against a known model."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.learn.pdm.factorise import rigid_shape
from jaxclnf.learn.pdm.landmark_fit import fit_landmarks
from jaxclnf.learn.pdm.landmark_shapes import LandmarkShapes, pdm_from_landmarks
from jaxclnf.learn.pdm.shapes import nearest_rotation
from jaxclnf.learn.pdm.symmetry import mirror_shapes
from jaxclnf.shape.pdm import PDM, PDMParams, project
from jaxclnf.shape.rotation import matrix_from_euler
from tests import synthetic

NUM_MODES = 3
NOISE = 0.4  # mm, and px at the scales used about as many

_rotations = jax.jit(jax.vmap(matrix_from_euler))
_project = jax.jit(jax.vmap(project, in_axes=(None, 0)))


class Faces(NamedTuple):
    pdm: PDM
    landmarks: np.ndarray
    clean: np.ndarray
    spread: np.ndarray


def make_faces(count: int, turning: float = 0.3, seed: int = 0) -> Faces:
    """Noisy landmarks of random faces; one label of twenty is unknown, and wrong."""
    pdm = synthetic.make_pdm(num_modes=NUM_MODES)
    rng = np.random.default_rng(seed)
    angles = turning * rng.normal(size=(count, 3)) * [0.5, 1.0, 0.5]
    local = rng.normal(size=(count, NUM_MODES)) * np.sqrt(np.asarray(pdm.eigen_values))
    params = PDMParams(
        scale=jnp.asarray(rng.uniform(0.8, 1.5, count)),
        rotation=_rotations(jnp.asarray(angles)),
        translation=jnp.asarray(rng.uniform(50, 900, (count, 2))),
        params_local=jnp.asarray(local),
    )
    clean = np.asarray(_project(pdm, params))
    noise = NOISE * np.asarray(params.scale)[:, None, None]
    landmarks = clean + noise * rng.normal(size=clean.shape)
    spread = np.full(clean.shape[:2], 0.1)
    unknown = rng.random(spread.shape) < 0.05
    spread[unknown] = np.inf
    landmarks[unknown] = 0
    return Faces(pdm, landmarks, clean, spread)


@pytest.fixture(scope="module")
def faces() -> Faces:
    return make_faces(400)


@pytest.fixture(scope="module")
def start() -> PDM:
    """The truth, with a mean that is a little off and modes a little turned."""
    pdm = synthetic.make_pdm(num_modes=NUM_MODES)
    rng = np.random.default_rng(5)
    mean = np.asarray(pdm.mean_shape) + rng.normal(0, 1.5, (12, 3))
    loads = np.asarray(pdm.princ_comp).reshape(36, -1) + rng.normal(0, 0.05, (36, 3))
    return PDM(
        mean_shape=jnp.asarray(mean - mean.mean(axis=0)),
        princ_comp=jnp.asarray(np.linalg.qr(loads)[0].reshape(12, 3, -1)),
        eigen_values=pdm.eigen_values * 1.5,
    )


@pytest.fixture(scope="module")
def learnt(faces, start) -> LandmarkShapes:
    # All tests fit chunks of 256 faces, so that they are compiled for once.
    return pdm_from_landmarks(
        faces.landmarks, faces.spread, start=start, start_faces=5.0, num_rounds=15
    )


def shape_error(found: PDM, truth: PDM) -> float:
    """RMS distance of the means after alignment, relative to their size."""
    a, b = np.asarray(found.mean_shape), np.asarray(truth.mean_shape)
    turned = a @ nearest_rotation(b.T @ a).T
    factor = np.sum(turned * b) / np.sum(turned**2)
    return float(np.sqrt(np.mean((factor * turned - b) ** 2) / np.mean(b**2)))


def held_out_error(learnt: LandmarkShapes) -> float:
    """RMS distance of new faces' projections from the true landmarks, pixels."""
    new = make_faces(256, seed=9)
    params = fit_landmarks(learnt.pdm, new.landmarks, new.spread, noise=learnt.noise)
    misses = np.asarray(_project(learnt.pdm, params)) - new.clean
    return float(np.sqrt(np.mean(misses[np.isfinite(new.spread)] ** 2)))


@pytest.mark.slow
def test_new_faces_are_reproduced_within_the_noise(learnt):
    assert held_out_error(learnt) < NOISE * 1.15
    assert 0.6 * NOISE < np.median(learnt.noise) < 1.1 * NOISE
    assert learnt.residuals[-1] < 0.6 * learnt.residuals[0]


def test_the_shape_is_recovered(learnt, start, faces):
    assert shape_error(learnt.pdm, faces.pdm) < 0.02
    assert shape_error(learnt.pdm, faces.pdm) < shape_error(start, faces.pdm)


def test_the_model_is_in_its_standard_form(learnt, start):
    modes = np.asarray(learnt.pdm.princ_comp).reshape(-1, NUM_MODES)
    np.testing.assert_allclose(modes.T @ modes, np.eye(NUM_MODES), atol=1e-12)
    mean = np.asarray(learnt.pdm.mean_shape)
    np.testing.assert_allclose(mean.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(
        np.sum(mean**2), np.sum(np.asarray(start.mean_shape) ** 2), rtol=1e-12
    )
    assert np.all(np.diff(learnt.pdm.eigen_values) <= 0)
    # No mode does what a pose can do.
    np.testing.assert_allclose(mean.reshape(-1) @ modes, 0, atol=1e-9)


def test_parameters_belong_to_the_faces(learnt, faces):
    misses = np.asarray(_project(learnt.pdm, learnt.params)) - faces.landmarks
    misses = misses[np.isfinite(faces.spread)]
    assert np.sqrt(np.mean(misses**2)) < 1.3 * NOISE


def test_landmarks_alone_are_enough_where_heads_turn(faces):
    rounds = []
    learnt = pdm_from_landmarks(
        faces.landmarks,
        faces.spread,
        num_modes=NUM_MODES,
        start_faces=1.0,
        num_rounds=25,
        radius=50.0,
        report=lambda done, distance: rounds.append((done, distance)),
    )
    assert rounds == list(zip(range(1, 26), learnt.residuals, strict=True))
    assert held_out_error(learnt) < 1.3 * NOISE
    mean = np.asarray(learnt.pdm.mean_shape)
    np.testing.assert_allclose(np.sqrt(np.mean(np.sum(mean**2, axis=1))), 50)
    assert shape_error(learnt.pdm, faces.pdm) < 0.05


def test_the_rigid_shape_is_the_mean_shape(faces):
    shape = rigid_shape(faces.landmarks, faces.spread, 60.0)
    rigid = PDM(
        mean_shape=jnp.asarray(shape),
        princ_comp=faces.pdm.princ_comp,
        eigen_values=faces.pdm.eigen_values,
    )
    assert shape_error(rigid, faces.pdm) < 0.08


def test_faces_that_do_not_turn_need_a_start():
    faces = make_faces(50, turning=0.0)
    shape = faces.pdm.mean_shape
    flat = np.broadcast_to(np.asarray(shape)[:, :2], faces.landmarks.shape)
    with pytest.raises(ValueError, match="turn too little"):
        pdm_from_landmarks(flat + 0.0, faces.spread, num_modes=2)


def test_depth_is_the_start_s_where_heads_do_not_turn(start):
    faces = make_faces(256, turning=0.0)
    learnt = pdm_from_landmarks(
        faces.landmarks, faces.spread, start=start, num_rounds=8
    )
    depth = [np.asarray(pdm.mean_shape)[:, 2] for pdm in (learnt.pdm, start)]
    assert np.corrcoef(depth)[0, 1] > 0.95
    assert 0.8 < depth[0].std() / depth[1].std() < 1.25
    assert learnt.pdm.eigen_values[0] < 2 * faces.pdm.eigen_values[0]


@pytest.mark.slow
def test_the_same_twice_and_in_both_precisions(faces, start):
    learn = lambda start, number: pdm_from_landmarks(
        faces.landmarks[:256].astype(number),
        faces.spread[:256].astype(number),
        start=start,
        num_rounds=3,
    )
    first, again = (learn(start, np.float64) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.pdm, again.pdm)
    low = learn(jax.tree.map(lambda x: x.astype(jnp.float32), start), np.float32)
    leaves = jax.tree.leaves((low.pdm, low.params))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    projected = [np.asarray(_project(x.pdm, x.params)) for x in (first, low)]
    assert np.abs(projected[0] - projected[1]).max() < 0.05  # px


@pytest.mark.slow
def test_more_modes_than_the_start_and_mirror_images():
    rng = np.random.default_rng(0)
    half = rng.uniform([10, -50, -20], [60, 50, 20], (6, 3))
    half[:, 2] += 0.005 * np.sum(half[:, :2] ** 2, axis=1)
    shape = np.concatenate([half, half * [-1, 1, 1]])
    mirror = np.asarray([*range(6, 12), *range(6)])
    moves = rng.normal(0, 1, (4, 12, 3))
    local = rng.normal(0, 3, (256, 4))
    landmarks = (shape + np.einsum("fm,mna->fna", local, moves))[..., :2]
    start = PDM(
        mean_shape=jnp.asarray(shape - shape.mean(axis=0)),
        princ_comp=jnp.asarray(moves[0][..., None] / np.linalg.norm(moves[0])),
        eigen_values=jnp.asarray([100.0]),
    )
    learnt = pdm_from_landmarks(
        landmarks,
        np.full((256, 12), 0.2),
        num_modes=8,  # symmetric and antisymmetric parts of four moves
        start=start,
        mirror=mirror,
        num_rounds=5,
    )
    mean = np.asarray(learnt.pdm.mean_shape)
    np.testing.assert_allclose(mirror_shapes(mean, mirror), mean, atol=1e-9)
    modes = np.moveaxis(np.asarray(learnt.pdm.princ_comp), 2, 0)
    signs = np.sum(mirror_shapes(modes, mirror) * modes, axis=(1, 2))
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-6)
    np.testing.assert_array_equal(learnt.noise, learnt.noise[mirror])
    assert len(learnt.params.scale) == 256
    assert learnt.residuals[-1] < 0.5  # mm; there is no noise, but 0.2 px expected


def test_far_turned_faces_are_fitted():
    faces = make_faces(256, turning=0.6, seed=3)
    params = fit_landmarks(
        faces.pdm, faces.landmarks, faces.spread, noise=np.full(12, NOISE)
    )
    misses = np.asarray(_project(faces.pdm, params)) - faces.clean
    assert np.sqrt(np.mean(misses[np.isfinite(faces.spread)] ** 2)) < 1.2 * NOISE


def test_bad_labels_are_refused(faces, start):
    few = Faces(start, *(a[:20].copy() for a in faces[1:]))
    learn: Any = inspect.unwrap(pdm_from_landmarks)  # as users run it
    with pytest.raises(ValueError, match="num_modes must be given"):
        learn(few.landmarks, few.spread)
    with pytest.raises(ValueError, match="num_modes: found 20, expected 1 to 19"):
        learn(few.landmarks, few.spread, num_modes=20)
    with pytest.raises(ValueError, match="start_faces is 0"):
        learn(few.landmarks, few.spread, start=start, start_faces=0.0)
    with pytest.raises(ValueError, match="num_rounds is 0"):
        learn(few.landmarks, few.spread, start=start, num_rounds=0)
    with pytest.raises(ValueError, match="does not pair"):
        learn(few.landmarks, few.spread, start=start, mirror=np.roll(np.arange(12), 1))
    bad = few.landmarks.copy()
    bad[[4, 6], np.isfinite(few.spread[4]).argmax()] = np.nan
    bad[6] = np.nan
    with pytest.raises(ValueError, match="not finite: faces 4, 6"):
        learn(bad, few.spread, start=start)
    bad = few.spread.copy()
    bad[2, 0] = 0
    with pytest.raises(ValueError, match="not positive: face 2"):
        learn(few.landmarks, bad, start=start)
    bad = few.spread.copy()
    bad[3, 3:] = np.inf
    with pytest.raises(ValueError, match="fewer than 4 known labels: face 3"):
        learn(few.landmarks, bad, start=start)
    bad = few.spread.copy()
    bad[:, 5] = np.inf
    with pytest.raises(ValueError, match=r"landmarks \[5\] are known in no face"):
        learn(few.landmarks, bad, num_modes=2)


def test_misshapen_input_is_refused(faces, start):
    from jaxclnf.learn.pdm.landmark_fit import check_landmarks

    check: Any = inspect.unwrap(check_landmarks)
    with pytest.raises(ValueError, match="f at least 1"):
        check(np.zeros((0, 12, 2)), np.zeros((0, 12)))
    with pytest.raises(ValueError, match="spread is"):
        check(faces.landmarks, faces.spread[:, 1:])
    with pytest.raises(ValueError, match="12 labels a face, but 68 landmarks"):
        check(faces.landmarks, faces.spread, 68)
