"""Shape models from 3D shapes, samples of a blendshape model, and mirror symmetry."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.app.datasets import faces_with_pts
from jaxclnf.learn.pdm.factorise import rigid_shape
from jaxclnf.learn.pdm.landmark_fit import centred
from jaxclnf.learn.pdm.shapes import (
    camera_frame,
    modes_for_variance,
    pdm_from_shapes,
    sample_expressions,
    sample_shapes,
)
from jaxclnf.learn.pdm.symmetry import mirror_index, mirror_landmarks, mirror_shapes
from jaxclnf.shape.pdm import PDM
from jaxclnf.shape.rotation import matrix_from_euler
from tests import synthetic

_rotations = jax.jit(jax.vmap(matrix_from_euler))
_unchecked: Any = inspect.unwrap(pdm_from_shapes)  # as users run it

IBUG_68 = [
    *range(16, -1, -1),
    *range(26, 16, -1),
    *range(27, 31),
    *range(35, 30, -1),
    *[45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40],
    *[54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55],
    *[64, 63, 62, 61, 60, 67, 66, 65],
]


@pytest.fixture(scope="module")
def pdm() -> PDM:
    return synthetic.make_pdm()


def sampled(pdm: PDM, count: int, size: float = 1.0, seed: int = 0) -> np.ndarray:
    """Shapes of the model, its variances multiplied by `size` squared."""
    rng = np.random.default_rng(seed)
    local = size * rng.normal(size=(count, pdm.num_modes))
    moves = np.asarray(pdm.princ_comp) * np.sqrt(np.asarray(pdm.eigen_values))
    return np.asarray(pdm.mean_shape) + np.einsum("nam,fm->fna", moves, local)


def moved(shapes: np.ndarray, angle: float, seed: int = 1) -> np.ndarray:
    """The shapes shifted, turned and resized at random."""
    rng = np.random.default_rng(seed)
    turns = np.asarray(_rotations(jnp.asarray(rng.normal(0, angle, (len(shapes), 3)))))
    sizes = rng.uniform(0.5, 2.0, (len(shapes), 1, 1))
    return sizes * shapes @ turns.swapaxes(1, 2) + rng.normal(
        0, 90, (len(shapes), 1, 3)
    )


def symmetric_shape(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Five pairs and three landmarks on the midline, in random order."""
    rng = np.random.default_rng(seed)
    half = rng.uniform([15, -60, -40], [70, 60, 40], (5, 3))
    middle = rng.normal(0, 40, (3, 3)) * [0, 1, 1]
    shape = np.concatenate([half, half * [-1, 1, 1], middle])
    index = np.asarray([*range(5, 10), *range(5), 10, 11, 12])
    order = rng.permutation(13)
    place = np.argsort(order)
    return shape[order], place[index[order]]


def test_modes_are_orthonormal_sorted_and_centred(pdm):
    found = pdm_from_shapes(sampled(pdm, 200), num_modes=4)
    modes = np.asarray(found.princ_comp).reshape(-1, 4)
    np.testing.assert_allclose(modes.T @ modes, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(np.mean(found.mean_shape, axis=0), 0, atol=1e-12)
    assert np.all(np.diff(found.eigen_values) <= 0)
    assert np.all(np.max(modes, axis=0) >= 0.999 * -np.min(modes, axis=0))


def test_small_variations_are_recovered(pdm):
    """Alignment takes similarities out of the modes, so only what is left compares."""
    shapes = sampled(pdm, 3000, size=0.02)
    found = pdm_from_shapes(moved(shapes, 0.5), num_modes=4)
    again = pdm_from_shapes(shapes, num_modes=4)
    ratio = np.asarray(found.eigen_values / again.eigen_values)
    # Sizes between 0.5 and 2 are averaged away.
    np.testing.assert_allclose(ratio / ratio[0], 1, atol=0.01)
    error = found.mean_shape / jnp.std(found.mean_shape)
    error = error - again.mean_shape / jnp.std(again.mean_shape)
    # The average orientation of 3000 heads turned by half a radian.
    assert np.abs(error).max() < 0.05


def test_size_is_kept_when_asked(pdm):
    sizes = np.random.default_rng(0).normal(1, 0.1, (300, 1, 1))
    shapes = sizes * np.asarray(pdm.mean_shape)
    kept = pdm_from_shapes(shapes, num_modes=1, remove_size=False)
    expected = np.var(sizes) * np.sum(np.asarray(pdm.mean_shape) ** 2)
    np.testing.assert_allclose(kept.eigen_values[0], expected, rtol=1e-3)
    removed = pdm_from_shapes(shapes, num_modes=1)
    assert removed.eigen_values[0] < 1e-12


def test_weights_count_like_repetitions(pdm):
    shapes = sampled(pdm, 30)
    weights = np.ones(30)
    weights[:10] = 2
    weighted = pdm_from_shapes(shapes, num_modes=3, weights=weights)
    repeated = pdm_from_shapes(np.concatenate([shapes, shapes[:10]]), num_modes=3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weighted, repeated
    )


def test_mirrored_models_are_symmetric():
    shape, index = symmetric_shape()
    rng = np.random.default_rng(3)
    shapes = shape + rng.normal(0, 3, (100, 13, 3))
    found = pdm_from_shapes(shapes, num_modes=8, mirror=index)
    mean = np.asarray(found.mean_shape)
    np.testing.assert_allclose(mirror_shapes(mean, index), mean, atol=1e-12)
    modes = np.moveaxis(np.asarray(found.princ_comp), 2, 0)
    signs = np.sum(mirror_shapes(modes, index) * modes, axis=(1, 2))
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-9)


def test_variance_chooses_the_number_of_modes(pdm):
    shapes = sampled(pdm, 500)
    assert pdm_from_shapes(shapes, variance=1.0).num_modes >= 4
    assert pdm_from_shapes(shapes, variance=0.3).num_modes == 1
    with pytest.raises(ValueError, match="variance is 1.5"):
        pdm_from_shapes(shapes, variance=1.5)
    with pytest.raises(ValueError, match="no modes"):
        modes_for_variance(np.zeros(3), 0.9)


def test_the_same_twice_and_in_both_precisions(pdm):
    shapes = sampled(pdm, 100)
    first, again = (pdm_from_shapes(shapes, num_modes=4) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    low = pdm_from_shapes(shapes.astype(np.float32), num_modes=4)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(low.eigen_values, first.eigen_values, rtol=1e-4)


def test_bad_shapes_are_refused(pdm):
    shapes = sampled(pdm, 12)
    with pytest.raises(ValueError, match="num_modes is 12; 12 shapes"):
        pdm_from_shapes(shapes, num_modes=12)
    with pytest.raises(ValueError, match="num_modes is 0"):
        pdm_from_shapes(shapes, num_modes=0)
    with pytest.raises(ValueError, match="expected .f, n, 3."):
        _unchecked(shapes[..., :2])
    with pytest.raises(ValueError, match="weights for 12 shapes"):
        _unchecked(shapes, weights=np.ones(3))
    with pytest.raises(ValueError, match="not negative"):
        pdm_from_shapes(shapes, weights=-np.ones(12))
    point = shapes.copy()
    point[5] = 7
    with pytest.raises(ValueError, match="in one place: face 5"):
        pdm_from_shapes(point)
    shapes[[3, 7], 0, 1] = np.nan
    with pytest.raises(ValueError, match="not finite: faces 3, 7"):
        pdm_from_shapes(shapes)


@pytest.mark.parametrize("angle", [0.0, 0.1])
def test_mirror_index_of_a_turned_and_noisy_shape(angle):
    for seed in range(5):
        shape, expected = symmetric_shape(seed)
        turn = np.asarray(_rotations(jnp.asarray([[0.05, angle, -0.05]])))[0]
        noise = np.random.default_rng(seed).normal(0, 0.5, shape.shape)
        np.testing.assert_array_equal(mirror_index(shape @ turn.T + noise), expected)


@pytest.mark.parametrize("shear", [-0.3, 0.3])
def test_mirror_index_of_a_shape_sheared_in_depth(shear):
    """As one is that comes from faces that turn little, noise in depth included."""
    for seed in range(5):
        shape, expected = symmetric_shape(seed)
        noise = np.random.default_rng(seed).normal(0, [0.5, 0.5, 1.5], shape.shape)
        sheared = shape + shear * shape[:, 2:] * [1, 0, 0] + noise
        np.testing.assert_array_equal(mirror_index(sheared), expected)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["lfpw_test", "helen_test", "afw"])
def test_mirror_index_of_few_labelled_photographs(shared, name):
    landmarks = np.stack([x.landmarks for x in faces_with_pts(shared / "faces" / name)])
    for seed in range(5):
        few = np.random.default_rng(seed).choice(len(landmarks), 60, replace=False)
        points, _ = centred(landmarks[few], np.ones((60, 68)))
        shape = rigid_shape(points, np.ones((60, 68)), 60.0)
        assert mirror_index(shape).tolist() == IBUG_68


def test_shapes_without_symmetry_are_refused(pdm):
    with pytest.raises(ValueError, match="not symmetric"):
        mirror_index(np.random.default_rng(0).normal(size=(20, 3)))
    with pytest.raises(ValueError, match=r"not finite at landmarks \[2\]"):
        mirror_index(np.asarray([[0, 0, 0], [1, 1, 1], [np.nan, 0, 0]]))


def test_mirrored_landmarks_match_mirrored_pixels():
    image = np.zeros((6, 9))
    points = np.asarray([[2.0, 1.0], [7.0, 4.0]])
    image[1, 2], image[4, 7] = 1, 2
    index = np.asarray([1, 0])
    flipped = mirror_landmarks(points, index, 9)
    values = [image[:, ::-1][int(y), int(x)] for x, y in flipped]
    assert values == [2, 1]
    widths = np.asarray([9, 12])
    many = mirror_landmarks(np.stack([points, points]), index, widths)
    np.testing.assert_array_equal(many[0], flipped)
    np.testing.assert_array_equal(many[1] - many[0], [[3, 0], [3, 0]])
    back = mirror_landmarks(many, index, widths)
    np.testing.assert_array_equal(back, np.stack([points, points]))


NAMES = [
    *["mouthSmile_L", "mouthSmile_R", "mouthFrown_L", "mouthFrown_R"],
    *["jawOpen", "mouthClose", "jawLeft", "jawRight", "other"],
]


def test_expressions_are_plausible():
    weights = sample_expressions(NAMES, 5000)
    column = dict(zip(NAMES, weights.T, strict=True))
    assert np.all((weights >= 0) & (weights <= 1))
    assert np.all(column["mouthClose"] <= column["jawOpen"])
    assert not np.any(column["jawLeft"] * column["jawRight"])
    assert not np.any(column["mouthSmile_L"] * column["mouthFrown_R"])
    assert np.corrcoef(column["mouthSmile_L"], column["mouthSmile_R"])[0, 1] > 0.7
    assert 0.07 < np.mean(column["other"] > 0) < 0.13
    np.testing.assert_array_equal(weights, sample_expressions(NAMES, 5000))
    assert np.any(weights != sample_expressions(NAMES, 5000, seed=1))


def test_samples_have_the_model_s_mean_and_spread():
    rng = np.random.default_rng(0)
    neutral, identity = rng.normal(size=(7, 3)), rng.normal(size=(4, 7, 3))
    expression = rng.normal(size=(2, 7, 3))
    weights = np.tile([0.25, 1.0], (20000, 1))
    shapes = sample_shapes(neutral, identity, expression, weights, seed=2)
    mean = neutral + 0.25 * expression[0] + expression[1]
    assert np.abs(shapes.mean(axis=0) - mean).max() < 0.1
    spread = np.sqrt(np.sum(identity**2, axis=0))
    np.testing.assert_allclose(shapes.std(axis=0), spread, rtol=0.03)
    unchecked: Any = inspect.unwrap(sample_shapes)
    with pytest.raises(ValueError, match="2 weights a face for 1 expressions"):
        unchecked(neutral, identity, expression[:1], weights)
    with pytest.raises(ValueError, match="identity moves"):
        unchecked(neutral, identity[:, :3], expression, weights)


@pytest.mark.shared
def test_the_face_model_gives_a_face(shared):
    with np.load(shared / "training" / "ict_landmarks68.npz") as file:
        parts = {name: file[name] for name in file}
    neutral, identity, expression = (
        camera_frame(parts[name]) for name in ("neutral", "identity", "expression")
    )
    index = mirror_index(neutral)
    assert index.tolist() == IBUG_68
    weights = sample_expressions(parts["expression_names"].tolist(), 600)
    shapes = sample_shapes(neutral, identity, expression, weights)
    found = pdm_from_shapes(shapes, num_modes=20, mirror=index)
    mean = np.asarray(found.mean_shape)
    assert mirror_index(mean).tolist() == IBUG_68
    assert mean[8, 1] > mean[27, 1]  # the chin is below
    assert mean[30, 2] < mean[0, 2]  # the nose is nearer than the ears
    assert mean[45, 0] - mean[36, 0] == pytest.approx(89, abs=3)  # mm
    assert 20 < np.sqrt(found.eigen_values[0]) < 30
