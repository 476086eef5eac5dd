"""Areas of interest: both ways of sampling against independent ones."""

import inspect

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxclnf.experts.area import areas_of_interest
from tests import synthetic

TOL = 1e-10  # grey values; float64 positions of 1e3 px times slopes of up to 255

SIZE = 13
SHAPE = (60, 80)
MATRIX = np.asarray([[1.31, -0.42], [0.42, 1.31]])
CENTERS = np.asarray(
    [
        [40.0, 30.0],
        [33.3, 21.7],
        [0.0, 0.0],
        [79.0, 59.0],
        [-7.2, 30.1],
        [81.4, 64.9],
        [-500.0, 1e4],
    ]
)

_areas = jax.jit(areas_of_interest, static_argnames=("size", "sampling"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return synthetic.make_image(1, SHAPE)


def _positions(centers: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """`(x, y)` of every sample: `(2, landmark, row, column)`."""
    offset = np.arange(size) - (size - 1) / 2
    v, u = np.meshgrid(offset, offset, indexing="ij")
    return (
        np.einsum("ij,jrc->irc", matrix, np.stack([u, v]))[:, None]
        + centers.T[:, :, None, None]
    )


def _fixed_point(image, centers, matrix, size) -> np.ndarray:
    """The formula of the reference data's README, in plain float64."""
    a, b = matrix[0, 0], -matrix[0, 1]
    steps = np.arange(size)
    half = (size - 1) / 2
    areas = []
    for x, y in centers:
        tx, ty = x - a * half + b * half, y - b * half - a * half
        columns = (
            np.rint(a * steps * 1024)[None] + np.rint((-b * steps + tx) * 1024)[:, None]
        )
        rows = (
            np.rint(b * steps * 1024)[None] + np.rint((a * steps + ty) * 1024)[:, None]
        )
        columns = (columns.astype(np.int64) + 16) >> 5
        rows = (rows.astype(np.int64) + 16) >> 5
        areas.append(_bilinear(image, rows / 32, columns / 32))
    return np.stack(areas)


def _bilinear(image, rows, columns) -> np.ndarray:
    padded = np.pad(np.asarray(image, np.float64), 2)
    inside = (rows > -1) & (rows < image.shape[0])
    inside &= (columns > -1) & (columns < image.shape[1])
    r, c = np.where(inside, rows, 0) + 2, np.where(inside, columns, 0) + 2
    i, j = np.floor(r).astype(int), np.floor(c).astype(int)
    down, right = r - i, c - j
    upper = (1 - right) * padded[i, j] + right * padded[i, j + 1]
    lower = (1 - right) * padded[i + 1, j] + right * padded[i + 1, j + 1]
    return np.where(inside, (1 - down) * upper + down * lower, 0)


def test_exact_sampling_against_scipy(image):
    found = _areas(image, jnp.asarray(CENTERS), jnp.asarray(MATRIX), SIZE)
    x, y = _positions(CENTERS, MATRIX, SIZE)
    padded = np.pad(image, 1).astype(float)  # scipy cuts off the slope at the border
    expected = scipy.ndimage.map_coordinates(padded, [y + 1, x + 1], order=1, cval=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOL)


@pytest.mark.parametrize("sampling", ["exact", "fixed_point"])
def test_whole_pixels_are_the_image_itself(image, sampling):
    centers = jnp.asarray([[20.0, 30.0], [2.0, 57.0]])
    found = _areas(image, centers, jnp.eye(2), SIZE, sampling=sampling)
    np.testing.assert_array_equal(found[0], image[24:37, 14:27])
    np.testing.assert_array_equal(found[1, :4, :4], 0)  # left of the image
    np.testing.assert_array_equal(found[1, :9, 4:], image[51:60, :9])
    np.testing.assert_array_equal(found[1, 9:], 0)  # below it


@pytest.mark.parametrize("sampling", ["exact", "fixed_point"])
def test_outside_counts_as_zero(sampling):
    ones = np.full((4, 4), 255, np.uint8)
    matrix = 0.5 * jnp.eye(2)
    area = _areas(ones, jnp.asarray([[-0.5, 1.5]]), matrix, 5, sampling=sampling)
    np.testing.assert_array_equal(area[0, 2], [0, 0, 255 / 2, 255, 255])


@pytest.mark.parametrize("sampling", ["exact", "fixed_point"])
def test_padding_with_zeros_changes_nothing(image, sampling):
    args = jnp.asarray(CENTERS), jnp.asarray(MATRIX), SIZE
    padded = np.pad(image, ((0, 17), (0, 40)))
    np.testing.assert_array_equal(
        _areas(image, *args, sampling=sampling),
        _areas(padded, *args, sampling=sampling),
    )


@pytest.mark.parametrize("sampling", ["exact", "fixed_point"])
def test_origin_is_added_to_the_centres(image, sampling):
    matrix = jnp.asarray(MATRIX)
    origin = np.asarray([30, 20], np.int32)
    plain = _areas(image, jnp.asarray(CENTERS), matrix, SIZE, sampling=sampling)
    apart = _areas(
        image,
        jnp.asarray(CENTERS - origin),
        matrix,
        SIZE,
        sampling=sampling,
        origin=jnp.asarray(origin),
    )
    # Positions differ by rounding, which at a tie may be another 1/32 px.
    np.testing.assert_allclose(apart, plain, rtol=0, atol=TOL)


def test_origin_keeps_float32_digits_in_large_photographs():
    """Near x = 60 000 float32 coordinates are 1/256 px apart."""
    image = np.zeros((20, 60_010), np.uint8)
    image[:, 60_000:] = 200
    matrix = jnp.eye(2, dtype=jnp.float32)
    area = _areas(
        image,
        jnp.asarray([[-0.7001, 10.0]], jnp.float32),
        matrix,
        1,
        origin=jnp.asarray([60_000, 0], jnp.int32),
    )
    np.testing.assert_allclose(area, 200 * (1 - 0.7001), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampling", ["exact", "fixed_point"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_bad_centre_touches_no_other(image, sampling, bad):
    matrix = jnp.asarray(MATRIX)
    centers = jnp.asarray(CENTERS)
    good = _areas(image, centers, matrix, SIZE, sampling=sampling)
    areas = _areas(image, centers.at[1].set(bad), matrix, SIZE, sampling=sampling)
    np.testing.assert_array_equal(areas[2:], good[2:])
    np.testing.assert_array_equal(areas[0], good[0])
    if sampling == "exact":  # no grey value of the image, whatever an index would give
        assert np.all(np.isnan(areas[1]) | (areas[1] == 0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(3))
def test_fixed_point_against_the_formula(image, dtype, seed):
    """Equal grey values: not one sample may round to another 1/32 px."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(0, 1.5, 2).astype(dtype)
    matrix = np.asarray([[matrix[0], -matrix[1]], [matrix[1], matrix[0]]])
    centers = np.concatenate([CENTERS[:6], rng.uniform(-5, 85, (40, 2))]).astype(dtype)
    found = _areas(
        image, jnp.asarray(centers), jnp.asarray(matrix), SIZE, sampling="fixed_point"
    )
    expected = _fixed_point(
        image, centers.astype(np.float64), matrix.astype(np.float64), SIZE
    )
    differs = np.abs(np.asarray(found) - expected).max(axis=(1, 2)) > 1e-3
    # The reference rounds the corner of the area to the precision of its landmarks; in
    # float32 that moves some areas to another 1/32 px.
    assert differs.mean() <= (0 if dtype == np.float64 else 0.1)


@pytest.mark.parametrize("seed", range(3))
def test_fixed_point_against_opencv(image, seed):
    """OpenCV interpolates in float32, to about 1e-5 grey values."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1.5, 2)
    matrix = np.asarray([[a, -b], [b, a]])
    centers = np.concatenate([CENTERS[:6], rng.uniform(-5, 85, (30, 2))])
    found = _areas(
        image, jnp.asarray(centers), jnp.asarray(matrix), SIZE, sampling="fixed_point"
    )
    half = np.full(2, (SIZE - 1) / 2)
    for center, area in zip(centers, found, strict=True):
        warp = np.column_stack([matrix, center - matrix @ half])
        expected = cv2.warpAffine(
            image.astype(np.float32),
            warp,
            (SIZE, SIZE),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        np.testing.assert_allclose(area, expected, rtol=0, atol=1e-4)


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_result_has_the_type_of_the_centres(image, dtype):
    converted = image.astype(dtype)
    expected = _areas(image, jnp.asarray(CENTERS), jnp.asarray(MATRIX), SIZE)
    found = _areas(converted, jnp.asarray(CENTERS), jnp.asarray(MATRIX), SIZE)
    assert found.dtype == jnp.float64
    np.testing.assert_array_equal(found, expected)
    low = _areas(
        converted,
        jnp.asarray(CENTERS, jnp.float32),
        jnp.asarray(MATRIX, jnp.float32),
        SIZE,
    )
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low[:-1], expected[:-1], rtol=0, atol=2e-3)


def test_derivative_along_the_image(image):
    """Bilinear weights: they sum to 1 inside, and are the same at any grey values."""
    centers, matrix = jnp.asarray([[40.3, 30.6]]), jnp.asarray(MATRIX)
    sample = lambda i: _areas(i, centers, matrix, 1)[0, 0, 0]
    slope = np.asarray(jax.grad(sample)(jnp.asarray(image, float)))
    np.testing.assert_allclose(slope.sum(), 1, rtol=0, atol=TOL)
    rows, columns = np.nonzero(slope)
    assert set(rows) == {30, 31} and set(columns) == {40, 41}


def test_derivative_along_the_centre_is_the_slope(image):
    ramp = 3.0 * jnp.arange(80.0)[None, :] + jnp.zeros((60, 1))
    sample = lambda c: _areas(ramp, c[None], jnp.asarray(MATRIX), 1)[0, 0, 0]
    slope = jax.grad(sample)(jnp.asarray([40.3, 30.6]))
    np.testing.assert_allclose(slope, [3, 0], rtol=0, atol=TOL)


def test_unknown_sampling(image):
    unchecked = inspect.unwrap(areas_of_interest)  # as users run it
    with pytest.raises(ValueError, match="sampling is 'nearest'"):
        unchecked(image, jnp.zeros((1, 2)), jnp.eye(2), 3, sampling="nearest")


@pytest.mark.parametrize("shape", [(4, 5, 3), (0, 4), (7,)])
def test_what_is_no_grey_image_is_refused(shape):
    sample = inspect.unwrap(areas_of_interest)
    with pytest.raises(ValueError, match=r"image has shape .*; expected grey values"):
        sample(jnp.zeros(shape), jnp.zeros((1, 2)), jnp.eye(2), 3)
