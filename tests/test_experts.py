"""Patch experts against plain loops: correlation, CCNF, Sigma, SVR, views."""

import dataclasses
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxclnf.experts import windows
from jaxclnf.experts.ccnf import ccnf_responses, neuron_sum
from jaxclnf.experts.responses import choose_view, response_maps
from jaxclnf.experts.sigma import apply_sigma, sigma_matrices, with_sigma
from jaxclnf.experts.svr import squared_gradient, svr_responses
from jaxclnf.experts.types import CCNFExperts, SVRExperts
from jaxclnf.experts.windows import normalised_correlation
from jaxclnf.shape.pdm import project
from tests import synthetic

TOL = 1e-12  # float64: some hundred roundings of numbers about 1
FLOAT32_TOL = 2e-6  # the same in float32

WINDOW = 7
PATCH = synthetic.SIDE
few_examples = settings(max_examples=15, deadline=None, derandomize=True)

_correlation = jax.jit(normalised_correlation)
_field = jax.jit(neuron_sum)
_ccnf = jax.jit(ccnf_responses)
_sigma = jax.jit(apply_sigma)
_svr = jax.jit(svr_responses)
_maps = jax.jit(response_maps, static_argnames=("window_size", "sampling"))


def _naive_correlation(areas: np.ndarray, filters: np.ndarray) -> np.ndarray:
    areas, filters = np.asarray(areas, np.float64), np.asarray(filters, np.float64)
    n, k, p, _ = filters.shape
    w = areas.shape[-1] - p + 1
    result = np.zeros((n, k, w, w))
    for index in np.ndindex(n, w, w):
        i, row, column = index
        region = areas[i, row : row + p, column : column + p]
        region = region - region.mean()
        norm = np.sqrt(np.sum(region**2))
        for j in range(k):
            kernel = filters[i, j] - filters[i, j].mean()
            if norm > 1e-9 * np.abs(areas[i]).max():
                result[i, j, row, column] = np.sum(kernel * region) / norm
    return result.reshape(n, k, w * w)


@pytest.fixture(scope="module")
def experts(example: dict) -> CCNFExperts:
    """Random experts of two views with three neurons, one of them too weak to count."""
    base = example["model"].experts[0]
    rng = np.random.default_rng(7)
    n = example["pdm"].num_landmarks
    shape = (2, n, 3)
    alpha = rng.uniform(1, 10, shape)
    alpha[..., 2] = 5e-5
    alpha[1, 0] = 0
    beta = rng.uniform(0.5, 5, shape)
    beta[1, 0] = 0
    return dataclasses.replace(
        base,
        weights=jnp.asarray(rng.normal(0, 0.1, (*shape, PATCH, PATCH))),
        norm_weights=jnp.asarray(rng.uniform(2, 20, shape)),
        bias=jnp.asarray(rng.normal(0, 3, shape)),
        alpha=jnp.asarray(alpha),
        beta=jnp.asarray(beta),
    )


@pytest.fixture(scope="module")
def areas(example: dict) -> jax.Array:
    rng = np.random.default_rng(8)
    n = example["pdm"].num_landmarks
    return jnp.asarray(rng.uniform(0, 255, (n, PATCH + 6, PATCH + 6)))


VIEWS = [jnp.asarray(v, jnp.int32) for v in range(2)]


# Normalised correlation.


def test_correlation_against_a_loop():
    rng = np.random.default_rng(0)
    areas = rng.uniform(0, 255, (3, 12, 12))
    filters = rng.normal(0.3, 1, (3, 2, 5, 5))
    found = _correlation(jnp.asarray(areas), jnp.asarray(filters))
    np.testing.assert_allclose(found, _naive_correlation(areas, filters), atol=TOL)


@pytest.mark.parametrize("n", [17, 40])
def test_correlation_of_groups_of_landmarks(n):
    """Group after group as on CPU, the last one filled up, and all at once."""
    rng = np.random.default_rng(2)
    areas = jnp.asarray(rng.uniform(0, 255, (n, 11, 11)))
    filters = jnp.asarray(rng.normal(0.3, 1, (n, 2, 5, 5)))
    expected = _naive_correlation(np.asarray(areas), np.asarray(filters))
    np.testing.assert_allclose(_correlation(areas, filters), expected, atol=TOL)
    zero_mean = filters - filters.mean(axis=(2, 3), keepdims=True)
    found = windows._at_once(areas, zero_mean.reshape(n, 2, 25))
    np.testing.assert_allclose(found, expected, atol=TOL)


def test_derivatives_of_the_correlation():
    rng = np.random.default_rng(3)
    areas = jnp.asarray(rng.uniform(0, 255, (3, 7, 7)))
    filters = jnp.asarray(rng.normal(0.3, 1, (3, 2, 5, 5)))
    check_grads(_correlation, (areas, filters), order=1, atol=1e-5, rtol=1e-5)


def test_correlation_of_flat_regions_is_zero():
    areas = np.full((3, 12, 12), [[[0.0]], [[255.0]], [[1 / 3]]])
    areas[1, :, 9:] = 17.0  # the first five columns of regions stay flat
    filters = np.random.default_rng(0).normal(0, 1, (3, 2, 5, 5))
    for dtype in (np.float64, np.float32):
        found = _correlation(jnp.asarray(areas, dtype), jnp.asarray(filters, dtype))
        grid = np.asarray(found).reshape(3, 2, 8, 8)
        np.testing.assert_array_equal(grid[[0, 2]], 0)
        np.testing.assert_array_equal(grid[1, ..., :5], 0)
        assert np.all(grid[1, ..., 5:] != 0)


@pytest.mark.parametrize("contrast", [1.0, 0.1, 0.01])
def test_correlation_keeps_digits_where_contrast_is_low(contrast):
    """A hundredth of a grey value on 200: sums of squares would lose all digits."""
    rng = np.random.default_rng(1)
    areas = (200 + contrast * rng.normal(size=(3, 12, 12))).astype(np.float32)
    filters = rng.normal(size=(3, 2, 5, 5)).astype(np.float32)
    filters /= np.sqrt(np.sum(filters**2, axis=(2, 3), keepdims=True))
    found = _correlation(jnp.asarray(areas), jnp.asarray(filters))
    np.testing.assert_allclose(
        found, _naive_correlation(areas, filters), rtol=0, atol=FLOAT32_TOL
    )


def test_correlation_beside_a_strong_edge():
    """A region of low contrast keeps its digits next to one of 255 grey values."""
    rng = np.random.default_rng(2)
    areas = (1 + rng.normal(size=(3, 12, 12))).astype(np.float32)
    areas[:, :, 10:] += 255
    filters = rng.normal(size=(3, 2, 5, 5)).astype(np.float32)
    filters /= np.sqrt(np.sum(filters**2, axis=(2, 3), keepdims=True))
    found = _correlation(jnp.asarray(areas), jnp.asarray(filters))
    np.testing.assert_allclose(
        found, _naive_correlation(areas, filters), rtol=0, atol=5 * FLOAT32_TOL
    )


# CCNF.


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_field_against_the_formula(experts, areas, view):
    correlation = _naive_correlation(areas, experts.weights[view])
    expected = np.zeros((areas.shape[0], WINDOW**2))
    for k in range(3):
        alpha, bias, gain = (
            np.asarray(x[view, :, k])[:, None]
            for x in (experts.alpha, experts.bias, experts.norm_weights)
        )
        if k < 2:
            response = 1 + np.exp(-(gain * correlation[:, k] + bias))
            expected += 2 * alpha / response
    np.testing.assert_allclose(
        _field(experts, view, areas), expected, rtol=0, atol=30 * TOL
    )


def _explicit_sigma(experts: CCNFExperts, view: int, window: int) -> np.ndarray:
    matrices = []
    for alpha, beta in zip(experts.alpha[view], experts.beta[view], strict=True):
        precision = np.eye(window**2) * np.sum(alpha)
        if window in experts.neighbours:
            similarities = np.asarray(experts.neighbours[window])
            precision += np.tensordot(np.asarray(beta), similarities, axes=1)
        absent = np.sum(alpha) == 0
        matrices.append(np.zeros_like(precision) if absent else precision / 2)
        if not absent:
            matrices[-1] = np.linalg.inv(2 * precision)
    return np.stack(matrices)


@pytest.mark.parametrize("window", [7, 9, 5, 13])
@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_four_ways_to_apply_sigma(experts, window, view, dtype):
    rng = np.random.default_rng(3)
    field = rng.uniform(0, 20, (experts.alpha.shape[1], window**2))
    expected = np.einsum(
        "nij,nj->ni", _explicit_sigma(experts, int(view), window), field
    )
    cast = lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x
    typed = jax.tree.map(cast, experts)
    tolerance = TOL if dtype == np.float64 else FLOAT32_TOL
    solved = _sigma(typed, view, jnp.asarray(field, dtype))
    assert solved.dtype == dtype
    np.testing.assert_allclose(solved, expected, rtol=0, atol=tolerance)
    for whole in (False, True):
        prepared = with_sigma(typed, (window,), whole=whole)
        assert set(prepared.sigma) == ({window} & {7, 9})
        product = _sigma(prepared, view, jnp.asarray(field, dtype))
        assert product.dtype == dtype
        np.testing.assert_allclose(product, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_pixel_spoils_one_map(experts, value):
    """Not prepared, all landmarks are solved for together."""
    field = np.random.default_rng(5).uniform(0, 20, (experts.alpha.shape[1], 49))
    clean = _sigma(experts, VIEWS[0], jnp.asarray(field))
    field[3, 10] = value
    found = np.asarray(_sigma(experts, VIEWS[0], jnp.asarray(field)))
    assert np.isnan(found[3]).all()
    others = np.arange(len(field)) != 3
    np.testing.assert_allclose(found[others], clean[others], rtol=0, atol=TOL)


def test_with_sigma_is_the_inverse_and_zero_without_expert(experts):
    prepared = with_sigma(experts, (7, 13))
    whole = with_sigma(experts, (7,), whole=True)
    for view in range(2):
        np.testing.assert_allclose(
            sigma_matrices(whole, view, 7), whole.sigma[7][view], rtol=0
        )
        expected = _explicit_sigma(experts, view, 7)
        found = sigma_matrices(prepared, view, 7)
        np.testing.assert_allclose(found, expected, atol=TOL)
    np.testing.assert_array_equal(sigma_matrices(prepared, 1, 7)[0], 0)
    assert with_sigma(prepared, ()).sigma == {}
    assert experts.sigma == {}  # left as it was


def test_neighbours_that_differ_in_a_mirror_have_a_whole_sigma(experts):
    changed = np.array(experts.neighbours[7])
    changed[0, 0, 1] = changed[0, 1, 0] = 0.5
    odd = dataclasses.replace(experts, neighbours={7: jnp.asarray(changed)})
    found = with_sigma(odd, (7,)).sigma[7][0]
    np.testing.assert_allclose(found, _explicit_sigma(odd, 0, 7), atol=TOL)


def test_only_prepared_windows_have_a_sigma(experts):
    with pytest.raises(ValueError, match=r"window is 9; expected one of .* \[7\]"):
        sigma_matrices(with_sigma(experts, (7,)), 0, 9)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_ccnf_responses_against_the_formula(experts, areas, view):
    field = np.asarray(_field(experts, view, areas))
    sigma = _explicit_sigma(experts, int(view), WINDOW)
    expected = np.einsum("nij,nj->ni", sigma, field)
    expected -= np.minimum(expected.min(axis=1, keepdims=True), 0)
    expected[~np.asarray(experts.visibility[view])] = 0
    for chosen in (experts, with_sigma(experts, (WINDOW,))):
        maps = _ccnf(chosen, view, areas)
        np.testing.assert_allclose(
            maps.reshape(expected.shape), expected, rtol=0, atol=10 * TOL
        )
    assert np.any(np.asarray(maps) > 0.1)


def test_absent_experts_have_zero_maps(experts, areas):
    maps = np.asarray(_ccnf(experts, VIEWS[1], areas))
    np.testing.assert_array_equal(maps[0], 0)
    assert np.all(maps[1:].max(axis=(1, 2)) > 0)


def test_only_a_negative_minimum_is_subtracted(experts, areas):
    """A heavy signless neighbour matrix makes entries of Sigma negative."""
    strong = experts.beta.at[:, 3, 2].set(60.0)
    experts = dataclasses.replace(experts, beta=strong)
    field = np.asarray(_field(experts, VIEWS[0], areas))
    sigma = _explicit_sigma(experts, 0, WINDOW)
    smooth = np.einsum("nij,nj->ni", sigma, field)
    negative = smooth.min(axis=1) < 0
    assert negative.any() and not negative.all()
    maps = np.asarray(_ccnf(experts, VIEWS[0], areas)).reshape(smooth.shape)
    np.testing.assert_allclose(maps[~negative], smooth[~negative], atol=10 * TOL)
    np.testing.assert_array_equal(maps[negative].min(axis=1), 0)


# SVR.


@pytest.fixture(scope="module")
def svr(example: dict) -> SVRExperts:
    rng = np.random.default_rng(9)
    n = example["pdm"].num_landmarks
    visibility = np.ones((2, n), bool)
    visibility[1, 2] = False
    return SVRExperts(
        patch_scaling=jnp.asarray(0.35),
        view_centers=jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.6, 0.0]]),
        visibility=jnp.asarray(visibility),
        weights=jnp.asarray(rng.normal(0.2, 1, (2, n, 2, PATCH, PATCH))),
        scaling=jnp.asarray(rng.uniform(2, 20, (2, n, 2))),
        bias=jnp.asarray(rng.normal(0, 2, (2, n, 2))),
        confidence=jnp.ones((2, n)),
        modalities=("grey", "gradient"),
    )


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_svr_against_opencv(svr, areas, view):
    """OpenCV's template matching works in float32."""
    maps = np.asarray(_svr(svr, view, areas))
    for i, area in enumerate(np.asarray(areas)):
        gradient = np.zeros_like(area)
        for r in range(1, area.shape[0] - 1):
            for c in range(1, area.shape[1] - 1):
                across = area[r, c + 1] - area[r, c - 1]
                down = area[r + 1, c] - area[r - 1, c]
                gradient[r, c] = across**2 + down**2
        expected = np.ones((WINDOW, WINDOW))
        for k, channel in enumerate((area, gradient)):
            correlation = cv2.matchTemplate(
                channel.astype(np.float32),
                np.asarray(svr.weights[view, i, k], np.float32),
                cv2.TM_CCOEFF_NORMED,
            )
            gain, bias = svr.scaling[view, i, k], svr.bias[view, i, k]
            expected /= 1 + np.exp(-(float(gain) * correlation + float(bias)))
        if not svr.visibility[view, i]:
            expected[:] = 0
        np.testing.assert_allclose(maps[i], expected, rtol=0, atol=1e-5)


def test_gradient_is_zero_on_a_flat_area_and_along_the_border():
    flat = squared_gradient(jnp.full((1, 5, 5), 7.0))
    np.testing.assert_array_equal(flat, 0)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5)))
    gradient = np.array(squared_gradient(noise))
    assert np.all(gradient[:, 1:-1, 1:-1] > 0)
    gradient[:, 1:-1, 1:-1] = 0
    np.testing.assert_array_equal(gradient, 0)


# Views and whole response maps.

CENTERS = np.asarray(
    [[0.0, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, -0.6, 0.0], [0.0, 0.6, 0.0]]
)


def test_the_nearest_view_is_chosen():
    rng = np.random.default_rng(5)
    centers = rng.uniform(-1, 1, (5, 3))
    poses = rng.uniform(-1.5, 1.5, (50, 3))
    expected = np.argmin(np.sum((centers[None] - poses[:, None]) ** 2, axis=2), axis=1)
    choose = jax.jit(jax.vmap(choose_view, (None, 0)))
    views = choose(jnp.asarray(centers), jnp.asarray(poses))
    assert views.dtype == jnp.int32
    np.testing.assert_array_equal(views, expected)


@pytest.mark.parametrize(
    "euler, view",
    [
        ((0.0, 0.3, 0.0), 0),  # as far from 0 as from 1
        ((0.0, 0.6, 0.0), 1),  # on 1 and on its double, 3
        ((0.0, -0.3, 0.1), 0),
        ((2.0, -0.31, 0.0), 2),
    ],
)
def test_the_first_of_equally_near_views_is_chosen(euler, view):
    assert int(choose_view(jnp.asarray(CENTERS), jnp.asarray(euler))) == view


@pytest.mark.slow
def test_each_face_uses_its_own_view_under_vmap(example, experts):
    pdm, image = example["pdm"], jnp.asarray(example["image"])
    yaws = (0.0, 0.5, 0.29, -0.4, 0.31)
    faces = [synthetic.make_params(pdm, euler=(0.02, yaw, 0.1)) for yaw in yaws]
    many = jax.tree.map(lambda *x: jnp.stack(x), *faces)
    one = lambda p: _maps(pdm, experts, image, p, WINDOW)
    batch = jax.jit(jax.vmap(one))(many)
    np.testing.assert_array_equal(batch.view, [0, 1, 0, 0, 1])
    for i, face in enumerate(faces):
        alone = one(face)
        np.testing.assert_array_equal(batch.visibility[i], alone.visibility)
        np.testing.assert_array_equal(batch.confidence[i], alone.confidence)
        np.testing.assert_allclose(batch.maps[i], alone.maps, rtol=0, atol=10 * TOL)


def test_response_maps_know_where_they_are(example):
    pdm, params = example["pdm"], example["params"]
    responses = example["responses"]
    np.testing.assert_allclose(
        responses.base_shape, project(pdm, params), rtol=0, atol=1e-10
    )
    identity = np.asarray(responses.ref_from_img) @ np.asarray(responses.img_from_ref)
    np.testing.assert_allclose(identity, np.eye(2), rtol=0, atol=TOL)
    # A frontal face at the roll of the start; 0.35 / 1.07 reference pixels a pixel.
    turn = math.atan2(responses.ref_from_img[1, 0], responses.ref_from_img[0, 0])
    assert turn == pytest.approx(-0.05, abs=1e-6)
    size = math.hypot(*responses.ref_from_img[0].tolist())
    assert size == pytest.approx(0.35 / 1.07, rel=1e-6)


def test_responses_peak_at_the_true_landmarks(example):
    """The experts were cut out of the image there."""
    pdm, image = example["pdm"], jnp.asarray(example["image"])
    responses = _maps(pdm, example["model"].experts[0], image, example["truth"], WINDOW)
    peaks = np.asarray(responses.maps).reshape(pdm.num_landmarks, -1).argmax(axis=1)
    np.testing.assert_array_equal(peaks, WINDOW**2 // 2)


@few_examples
@given(gain=st.floats(0.05, 20), offset=st.floats(-1e3, 1e3))
def test_gain_and_offset_do_not_matter(example, gain, offset):
    """Inside the image, that is; what lies outside stays 0."""
    pdm, image = example["pdm"], jnp.asarray(example["image"], float)
    args = (example["params"], WINDOW)
    experts = example["model"].experts[0]
    plain = _maps(pdm, experts, image, *args)
    changed = _maps(pdm, experts, gain * image + offset, *args)
    np.testing.assert_allclose(changed.maps, plain.maps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [0, -3, 8])
def test_window_must_be_odd(example, window):
    with pytest.raises(ValueError, match=f"window_size is {window}"):
        response_maps(
            example["pdm"],
            example["model"].experts[0],
            example["image"],
            example["params"],
            window,
        )


@pytest.mark.parametrize("kind", ["ccnf", "svr"])
def test_float32_maps_against_float64(kind):
    high, low = synthetic.example(), synthetic.example(np.float32)
    make = synthetic.make_svr_experts if kind == "svr" else synthetic.make_experts
    maps = {}
    for names in (low, high):
        experts = make(names["pdm"], names["truth"], names["image"], 0.35)
        responses = _maps(
            names["pdm"], experts, names["image"], names["params"], WINDOW
        )
        maps[responses.maps.dtype.name] = np.asarray(responses.maps)
    np.testing.assert_allclose(maps["float32"], maps["float64"], rtol=0, atol=1e-4)
