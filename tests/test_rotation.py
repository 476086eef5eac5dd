"""Rotations: conversions there and back, derivatives at zero, the small step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from jaxclnf.shape.pdm import PDMParams, retract
from jaxclnf.shape.rotation import (
    axis_angle_from_matrix,
    cross_matrix,
    euler_from_matrix,
    matrix_from_axis_angle,
    matrix_from_euler,
    small_rotation,
)

TOL = 1e-13  # float64: a few dozen roundings of numbers up to pi
FLOAT32_TOL = 1e-6  # the same for float32

HALF_TURN = np.pi
QUARTER = np.pi / 2

from_euler = jax.jit(matrix_from_euler)
to_euler = jax.jit(euler_from_matrix)
from_axis_angle = jax.jit(matrix_from_axis_angle)
to_axis_angle = jax.jit(axis_angle_from_matrix)
small = jax.jit(small_rotation)

ANGLES = hnp.arrays(np.float64, 3, elements=st.floats(-3.2, 3.2))
few_examples = settings(max_examples=30, deadline=None, derandomize=True)

YAWS = (
    0.0,
    1e-9,
    QUARTER - 1e-3,
    QUARTER - 1e-9,
    QUARTER,
    QUARTER + 1e-9,
    -QUARTER,
    -QUARTER + 1e-9,
)
AXES = np.asarray(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    + [[1, 2, -3], [-3, 1e-5, 1e-9], [1e-9, -1, 1e-9]],
    np.float64,
)
AXES /= np.linalg.norm(AXES, axis=1, keepdims=True)
GENERATORS = np.cross(np.eye(3)[:, None], np.eye(3)[None]).swapaxes(1, 2)
LENGTHS = (0.0, 1e-300, 1e-9, 1e-3, 9.99e-3, 1.01e-2, 1.0, 3.0, np.pi - 1e-9, np.pi)


def _is_rotation(matrix) -> bool:
    matrix = np.asarray(matrix)
    orthonormal = np.abs(matrix.T @ matrix - np.eye(3)).max() < TOL
    return bool(orthonormal and np.linalg.det(matrix) > 0)


@few_examples
@given(euler=ANGLES)
def test_matrix_of_euler_angles_is_the_product_of_three(euler):
    expected = Rotation.from_euler("XYZ", euler).as_matrix()
    np.testing.assert_allclose(from_euler(euler), expected, rtol=0, atol=TOL)


@few_examples
@given(euler=ANGLES)
@example(euler=np.zeros(3))
@example(euler=np.full(3, 1e-9))
def test_euler_round_trip(euler):
    euler = euler * [1, 0.49, 1]  # yaw within +-pi/2, where the angles are unique
    back = np.asarray(to_euler(from_euler(euler)))
    difference = np.abs(back - euler)
    difference = np.minimum(difference, 2 * np.pi - difference)
    np.testing.assert_allclose(difference, 0, atol=1e-10)  # 1 / cos(yaw) <= 500


@pytest.mark.parametrize("yaw", YAWS)
@pytest.mark.parametrize("pitch", [0.0, 0.7, HALF_TURN, -3.0])
@pytest.mark.parametrize("roll", [0.0, -1.2, HALF_TURN])
def test_euler_angles_give_the_matrix_back_everywhere(pitch, yaw, roll):
    matrix = from_euler(np.asarray([pitch, yaw, roll]))
    euler = to_euler(matrix)
    assert abs(euler[1]) <= QUARTER
    np.testing.assert_allclose(from_euler(euler), matrix, rtol=0, atol=TOL)


@few_examples
@given(euler=ANGLES)
def test_axis_angle_of_any_matrix_gives_it_back(euler):
    matrix = from_euler(euler)
    axis_angle = to_axis_angle(matrix)
    assert np.linalg.norm(axis_angle) <= np.pi + TOL
    np.testing.assert_allclose(from_axis_angle(axis_angle), matrix, rtol=0, atol=TOL)


@pytest.mark.parametrize("length", LENGTHS)
def test_axis_angle_round_trip(length):
    for axis in AXES:
        matrix = from_axis_angle(length * axis)
        assert _is_rotation(matrix)
        expected = Rotation.from_rotvec(length * axis).as_matrix()
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=TOL)
        back = np.asarray(to_axis_angle(matrix))
        if length > np.pi - 1e-6:  # the axis' sign is lost to rounding at pi
            np.testing.assert_allclose(from_axis_angle(back), expected, atol=TOL)
            np.testing.assert_allclose(np.linalg.norm(back), length, atol=TOL)
        else:
            np.testing.assert_allclose(back, length * axis, rtol=0, atol=10 * TOL)


def test_tiny_axis_angles_keep_their_digits():
    axis_angle = 1e-9 * AXES
    back = jax.vmap(lambda v: to_axis_angle(from_axis_angle(v)))(axis_angle)
    np.testing.assert_allclose(back, axis_angle, rtol=1e-12, atol=1e-24)


def test_derivatives_of_the_exponential_map_at_zero():
    generators = np.moveaxis(GENERATORS, 0, -1)
    reverse = jax.jacrev(matrix_from_axis_angle)
    np.testing.assert_array_equal(jax.jit(reverse)(jnp.zeros(3)), generators)
    second = np.asarray(jax.jit(jax.jacfwd(reverse))(jnp.zeros(3)))
    products = np.einsum("ijk,jlm->ilkm", generators, generators)
    symmetric = (products + np.swapaxes(products, 2, 3)) / 2
    np.testing.assert_allclose(second, symmetric, rtol=0, atol=TOL)


def test_derivatives_of_both_sides_of_the_series_meet():
    derivative = jax.jit(jax.jacfwd(matrix_from_axis_angle))
    axis = AXES[6]
    below, above = derivative(9.999999e-3 * axis), derivative(1.0000001e-2 * axis)
    np.testing.assert_allclose(below, above, rtol=0, atol=1e-8)  # they are 1e-9 apart


@pytest.mark.parametrize("function", [small_rotation, matrix_from_axis_angle])
def test_derivatives_at_zero_are_the_generators(function):
    generators = np.moveaxis(GENERATORS, 0, -1)
    derivative = jax.jit(jax.jacfwd(function))(jnp.zeros(3))
    np.testing.assert_array_equal(derivative, generators)


def test_derivative_of_axis_angle_is_finite_at_zero():
    def there_and_back(v):
        return axis_angle_from_matrix(matrix_from_axis_angle(v))

    derivative = jax.jit(jax.jacfwd(there_and_back))(jnp.zeros(3))
    np.testing.assert_allclose(derivative, np.eye(3), rtol=0, atol=TOL)


def test_derivative_of_retract_at_zero_turns_on_the_right():
    euler = jnp.asarray([0.3, QUARTER, -0.2])
    params = PDMParams.from_global(
        jnp.concatenate([jnp.ones(1), euler, jnp.zeros(2)]), jnp.zeros(1)
    )
    turning = jax.jacfwd(lambda p, d: retract(p, d).rotation, 1)
    turn = jax.jit(turning)(params, jnp.zeros(6))
    expected = np.asarray(params.rotation) @ GENERATORS
    np.testing.assert_allclose(
        np.moveaxis(turn[..., 1:4], -1, 0), expected, rtol=0, atol=TOL
    )
    np.testing.assert_array_equal(turn[..., [0, 4, 5]], 0)


@few_examples
@given(w=hnp.arrays(np.float64, 3, elements=st.floats(-5, 5)))
@example(w=np.zeros(3))
@example(w=np.full(3, 1e-9))
def test_small_rotation_is_the_svd_orthonormalisation(w):
    u, _, vt = np.linalg.svd(np.eye(3) + np.asarray(cross_matrix(jnp.asarray(w))))
    rotation = small(w)
    assert _is_rotation(rotation)
    np.testing.assert_allclose(rotation, u @ vt, rtol=0, atol=TOL)


def test_small_rotation_turns_by_the_arc_tangent():
    for axis in AXES:
        turned = to_axis_angle(small(2.0 * axis))
        np.testing.assert_allclose(turned, np.arctan(2.0) * axis, rtol=0, atol=TOL)


def test_small_rotation_agrees_with_the_exponential_to_second_order():
    """The difference is `|w|^3 / 3`, so a tenth of the step leaves a thousandth."""
    differences = []
    for length in (1e-1, 1e-2, 1e-3):
        skew = np.asarray(cross_matrix(jnp.asarray(length * AXES[6])))
        exponential = scipy.linalg.expm(skew)
        differences.append(np.linalg.norm(small(length * AXES[6]) - exponential, 2))
    np.testing.assert_allclose(
        differences, [1e-3 / 3, 1e-6 / 3, 1e-9 / 3], rtol=0.02, atol=0
    )


def test_float32_against_float64():
    rng = np.random.default_rng(0)
    angles = rng.uniform(-3, 3, (200, 3)).astype(np.float32)
    for function in (matrix_from_euler, matrix_from_axis_angle, small_rotation):
        many = jax.jit(jax.vmap(function))
        low = many(angles)
        assert low.dtype == jnp.float32
        high = many(angles.astype(np.float64))
        np.testing.assert_allclose(low, high, rtol=0, atol=FLOAT32_TOL)
    matrices = jax.jit(jax.vmap(matrix_from_euler))(angles)
    for there, back in (
        (euler_from_matrix, matrix_from_euler),
        (axis_angle_from_matrix, matrix_from_axis_angle),
    ):
        again = jax.jit(jax.vmap(lambda r, f=there, g=back: g(f(r))))(matrices)
        assert again.dtype == jnp.float32
        np.testing.assert_allclose(again, matrices, rtol=0, atol=2 * FLOAT32_TOL)


@pytest.mark.parametrize("yaw", [QUARTER, -QUARTER, QUARTER - 1e-4])
def test_float32_profile_keeps_its_digits(yaw):
    """The reference's quaternion loses half of the digits here."""
    matrix = from_euler(np.asarray([0.4, yaw, -0.7], np.float32))
    again = from_euler(to_euler(matrix))
    np.testing.assert_allclose(again, matrix, rtol=0, atol=FLOAT32_TOL)
