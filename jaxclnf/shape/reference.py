"""The geometry of the C++ program to the last bit of its float32 numbers.

OpenFace rounds sample positions to 1/32 px, so two builds of it that differ in the last
bit of a landmark can end a tenth of a pixel apart. The functions here do for float32
parameters what it does, rounding for rounding: fused multiply-adds where its compiler
fuses, sums in double where OpenCV's are, a Jacobi SVD in float32 for the small
rotation, the detour over an axis-angle vector. What was found out from its reference
arrays is repeated in double precision and rounded where it rounds; only the `openface`
dialect pays for that. float64 parameters go through the exact functions of this room.
"""

from collections.abc import Callable
from functools import wraps
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxclnf.materialised import materialised
from jaxclnf.shape.pdm import PDM, PDMParams, project, shape_3d
from jaxclnf.shape.rotation import matrix_from_euler, small_rotation
from jaxclnf.shape.similarity import align_shapes, inverse_similarity

_SWEEPS = 3
"""Jacobi sweeps for the small rotation; of 1010 in the reference arrays one needed two,
none three."""
_LEAST_SINE = 1e-5
"""Rotations by less are none to OpenCV."""


def _with_roundings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a float32 function in double; `_r` in it rounds where OpenFace rounds."""

    def cast(tree: Any, dtype: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    @wraps(function)
    def wrapped(*args: Any) -> Any:
        with jax.enable_x64(True):
            return cast(function(*cast(args, jnp.float64)), jnp.float32)

    return wrapped


def _r(x: Array) -> Array:
    """Rounds to float32's 24 bits, what a single operation in float32 would give.

    Written as float32 operations, the compiler would fuse products with sums.
    """
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=23)


def reference_matrix(euler: Float[Array, " 3"]) -> Float[Array, "3 3"]:
    """Rotation matrix of `(pitch, yaw, roll)`.

    Args:
        euler: Angles, radians.

    Returns:
        `matrix_from_euler` as OpenFace rounds it.

    Mirrors:
        Utilities::Euler2RotationMatrix.

    Example:
        >>> euler = jnp.asarray([0.1, -0.5, 0.3], jnp.float32)
        >>> near = jnp.abs(reference_matrix(euler) - matrix_from_euler(euler)) < 1e-6
        >>> bool(near.all())
        True
    """
    if euler.dtype != jnp.float32:
        return matrix_from_euler(euler)
    return _matrix_from_euler(euler)


@_with_roundings
def _matrix_from_euler(euler: Array) -> Array:
    return _matrix(euler)


def _matrix(euler: Array) -> Array:
    s1, s2, s3 = _r(jnp.sin(euler))
    c1, c2, c3 = _r(jnp.cos(euler))
    rows = [
        [_r(c2 * c3), -_r(c2 * s3), s2],
        [
            _r(c1 * s3 + _r(_r(c3 * s1) * s2)),
            _r(_r(c1 * c3) - _r(s1 * s2) * s3),
            -_r(c2 * s1),
        ],
        [
            _r(s1 * s3 - _r(_r(c1 * c3) * s2)),
            _r(_r(c3 * s1) + _r(c1 * s2) * s3),
            _r(c1 * c2),
        ],
    ]
    return jnp.stack([jnp.stack(row) for row in rows])


def reference_turn(
    rotation: Float[Array, "3 3"], w: Float[Array, " 3"]
) -> Float[Array, "3 3"]:
    """A rotation after a small step, as a matrix made from Euler angles.

    Near a yaw of +-90 degrees half of the digits are lost, and a rotation by exactly pi
    becomes none: everywhere but in the `openface` dialect use `retract`.

    Args:
        rotation: The rotation before.
        w: The three rotation entries of a step, see `retract`.

    Returns:
        The rotation after.

    Mirrors:
        The rotation's part of PDM::UpdateModelParameters.

    Example:
        >>> turned = reference_turn(jnp.eye(3), jnp.asarray([0.0, 0.0, 1.0]))
        >>> bool(jnp.allclose(turned[1, 0], 0.5**0.5))
        True
    """
    if rotation.dtype != jnp.float32:
        turned = jnp.matmul(rotation, small_rotation(w), precision="highest")
        euler = _euler(turned, lambda x: x)
        return matrix_from_euler(jnp.where(jnp.isnan(euler), 0, euler))
    return _turn(rotation, w)


@_with_roundings
def _turn(rotation: Array, w: Array) -> Array:
    step = _once(_orthonormal_step(w))
    product = _r(rotation[:, :1] * step[:1])
    for k in (1, 2):
        product = _r(rotation[:, k : k + 1] * step[k : k + 1] + product)
    product = _once(product)
    euler = _euler(_r(_rodrigues(_r(_axis_angle(product)))), _r)
    return _matrix(jnp.where(jnp.isnan(euler), 0, euler))


def _once(rounded: Array) -> Array:
    """The same numbers, which else are worked out for each number that they go into: a
    turn would take three times as long.

    In float32, which holds what `_r` gives: a `dot` in double loses its type where it
    is batched later.
    """
    return materialised(rounded.astype(jnp.float32)).astype(rounded.dtype)


def _orthonormal_step(w: Array) -> Array:
    """The rotation nearest to `I + [w]x`, by way of OpenCV's SVD."""
    one, (x, y, z) = jnp.ones_like(w[0]), w
    rows = [[one, -z, y], [z, one, -x], [-y, x, one]]
    u, vt = _jacobi_svd(jnp.stack([jnp.stack(row) for row in rows]))
    handedness = _r(_determinant(_plain_product(u, vt)))
    return _plain_product(_r(u * jnp.stack([one, one, handedness])[None]), vt)


def _jacobi_svd(matrix: Array) -> tuple[Array, Array]:
    """OpenCV's one-sided Jacobi SVD of a small float32 matrix: `u` and `v.T`."""
    size = matrix.shape[0]
    # Each row: a column of the matrix, then one of v.
    rows = jnp.concatenate([matrix.T, jnp.eye(size, dtype=matrix.dtype)], axis=1)

    pairs = np.array([*combinations(range(size), 2)] * _SWEEPS, np.int32)

    def turn(step: Array, rows: Array) -> Array:
        pair = lax.dynamic_index_in_dim(jnp.asarray(pairs), step, keepdims=False)
        both = rows[pair]
        skip, c, s = _jacobi_rotation(*both[:, :size])
        other = jnp.stack([both[1], -both[0]])
        turned = jnp.where(skip, both, _r(_r(c * both) + _r(s * other)))
        return rows.at[pair].set(turned, unique_indices=True)

    rows = lax.fori_loop(0, len(pairs), turn, rows)
    sizes = jnp.sqrt(_dot(rows[:, :size], rows[:, :size]))
    sizes, rows = _largest_first(sizes, rows)
    return _r(rows[:, :size] * _r(1 / sizes)[:, None]).T, rows[:, size:]


def _dot(a: Array, b: Array) -> Array:
    """Sum of products over the last axis, one after the other."""
    products = a * b
    total = products[..., 0]
    for k in range(1, products.shape[-1]):
        total = total + products[..., k]
    return total


def _jacobi_rotation(at_i: Array, at_j: Array) -> tuple[Array, Array, Array]:
    """Whether two columns are orthogonal, and else the cosine and sine to make them."""
    a, b, overlap = _dot(at_i, at_i), _dot(at_j, at_j), _dot(at_i, at_j)
    skip = jnp.abs(overlap) <= 2 * 2.0**-23 * jnp.sqrt(a * b)
    p, beta = 2 * overlap, a - b
    gamma = jnp.where(skip, 1, jnp.sqrt(p * p + beta * beta))
    is_small = beta < 0
    share = jnp.where(
        is_small, (gamma - beta) * 0.5 / gamma, (gamma + beta) / (gamma * 2)
    )
    first = jnp.where(skip, 1, _r(jnp.sqrt(share)))
    second = _r(p / (gamma * first * 2))
    return skip, jnp.where(is_small, second, first), jnp.where(is_small, first, second)


def _largest_first(sizes: Array, rows: Array) -> tuple[Array, Array]:
    """Rows by their size, with the swaps of a selection sort between equals."""
    index = jnp.arange(len(sizes), dtype=jnp.int32)
    for i in range(len(sizes) - 1):
        best, at = sizes[i], jnp.full((), i, jnp.int32)
        for k in range(i + 1, len(sizes)):
            larger = sizes[k] > best
            best, at = jnp.where(larger, sizes[k], best), jnp.where(larger, k, at)
        # Row i goes where the largest was.
        order = jnp.where(index == i, at, jnp.where(index == at, i, index))
        sizes, rows = sizes[order], rows[order]
    return sizes, rows


def _product(a: Array, b: Array) -> Array:
    """A matrix product in double; no `dot`, as in `_once`."""
    return jnp.sum(a[:, :, None] * b[None, :, :], axis=1)


def _plain_product(a: Array, b: Array) -> Array:
    """A matrix product in float32, every operation rounded."""
    product = _r(a[:, :1] * b[:1])
    for k in range(1, a.shape[1]):
        product = _r(product + _r(a[:, k : k + 1] * b[k : k + 1]))
    return product


def _determinant(m: Array) -> Array:
    return (
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )


def _axis_angle(rotation: Array) -> Array:
    """OpenCV's axis-angle vector of a rotation by less than pi, in double."""
    # The nearest rotation matrix: two Newton-Schulz steps, from 1e-7 to 1e-28.
    for _ in range(2):
        gram = _product(rotation.T, rotation)
        rotation = 1.5 * rotation - 0.5 * _product(rotation, gram)
    r = rotation
    vector = jnp.stack([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    sine = jnp.sqrt(0.25 * jnp.sum(vector * vector))
    cosine = jnp.clip((r[0, 0] + r[1, 1] + r[2, 2] - 1) * 0.5, -1, 1)
    none = (sine < _LEAST_SINE) & (cosine > 0)
    angle = jnp.arccos(cosine)
    return jnp.where(none, 0, vector * (angle / (2 * jnp.where(none, 1, sine))))


def _rodrigues(axis_angle: Array) -> Array:
    """Rotation matrix of a float32 axis-angle vector, in double."""
    angle = jnp.sqrt(jnp.sum(axis_angle * axis_angle))
    none = angle < 2.0**-52
    x, y, z = axis = axis_angle / jnp.where(none, 1, angle)
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    skew = jnp.stack([jnp.stack(row) for row in rows])
    eye, outer = jnp.eye(3, dtype=angle.dtype), axis[:, None] * axis[None, :]
    cosine = jnp.cos(angle)
    turned = cosine * eye + (1 - cosine) * outer + jnp.sin(angle) * skew
    return jnp.where(none, eye, turned)


def _euler(rotation: Array, r: Callable[[Array], Array]) -> Array:
    """Pitch, yaw and roll by way of the quaternion; NaN at rotations by exactly pi."""
    m = rotation
    q0 = r(jnp.sqrt(r(r(r(1 + m[0, 0]) + m[1, 1]) + m[2, 2]))) / 2
    q1 = r(r(m[2, 1] - m[1, 2]) / (4 * q0))
    q2 = r(r(m[0, 2] - m[2, 0]) / (4 * q0))
    q3 = r(r(m[1, 0] - m[0, 1]) / (4 * q0))
    difference, total = r(q0 * q0 - r(q1 * q1)), r(q0 * q0 + r(q1 * q1))
    pitch = jnp.arctan2(
        2 * r(q0 * q1 - r(q2 * q3)), r(q3 * q3 + r(difference - q2 * q2))
    )
    yaw = jnp.arcsin(jnp.clip(2 * r(q0 * q2 + r(q1 * q3)), -1, 1))
    roll = jnp.arctan2(2 * r(q0 * q3 - r(q1 * q2)), r(r(total - q2 * q2) - q3 * q3))
    return r(jnp.stack([pitch, yaw, roll]))


def reference_project(pdm: PDM, params: PDMParams) -> Float[Array, "n 2"]:
    """Landmarks in the image, as `project`.

    Args:
        pdm: The model.
        params: Pose and mode weights.

    Returns:
        Landmark positions `(x, y)`, pixels, as OpenFace rounds them.

    Mirrors:
        PDM::CalcShape2D.

    Example:
        >>> exact = project(pdm, params)
        >>> bool(jnp.allclose(reference_project(pdm, params), exact, atol=1e-3))
        True
    """
    if params.scale.dtype != jnp.float32:
        return project(pdm, params)
    return _project(pdm, params)


@_with_roundings
def _project(pdm: PDM, params: PDMParams) -> Array:
    x, y, z = _shape_3d(pdm, params.params_local).T
    axes = []
    for row, shift in zip(params.rotation[:2], params.translation, strict=True):
        turned = _r(row[2] * z + _r(row[0] * x + _r(row[1] * y)))
        axes.append(_r(params.scale * turned + shift))
    return jnp.stack(axes, axis=-1)


def _shape_3d(pdm: PDM, params_local: Array) -> Array:
    moved = jnp.sum(pdm.princ_comp * params_local[None, None, :], axis=-1)
    return _r(pdm.mean_shape + moved)


def reference_frame(
    pdm: PDM,
    params: PDMParams,
    shape: Float[Array, "n 2"],
    patch_scaling: Float[Array, ""],
) -> tuple[Float[Array, "2 2"], Float[Array, "2 2"]]:
    """The similarities between the image and the experts' reference frame.

    Args:
        pdm: The model.
        params: Pose and mode weights.
        shape: Their landmarks in the image, pixels.
        patch_scaling: Size of the reference frame, pixels per millimetre.

    Returns:
        `ref_from_img` and `img_from_ref`, as OpenFace rounds them.

    Mirrors:
        Utilities::AlignShapesWithScale.

    Example:
        >>> shape = project(pdm, params)
        >>> there, back = reference_frame(pdm, params, shape, jnp.asarray(0.5))
        >>> bool(jnp.allclose(there @ back, jnp.eye(2), atol=1e-5))
        True
    """
    if shape.dtype != jnp.float32:
        reference = patch_scaling * shape_3d(pdm, params.params_local)[:, :2]
        there = align_shapes(shape, reference)
        return there, inverse_similarity(there)
    return _frame(pdm, params, shape, patch_scaling)


@_with_roundings
def _frame(
    pdm: PDM, params: PDMParams, shape: Array, patch_scaling: Array
) -> tuple[Array, Array]:
    reference = _r(_shape_3d(pdm, params.params_local)[:, :2] * patch_scaling)
    source, source_size = _normalised(shape)
    target, target_size = _normalised(reference)
    u, vt = _jacobi_svd(_r(_product(source.T, target)))
    # Beyond profile the shape is mirrored: the smaller direction is turned round.
    (a, b), (c, d) = _product(vt.T, u.T)
    handed = jnp.stack([jnp.ones_like(a), jnp.where(a * d - b * c > 0, 1, -1)])
    rotation = _r(_product((vt * handed[:, None]).T, u.T))
    there = _r(_r(target_size / source_size) * rotation)
    (a, b), (c, d) = there
    inverse = _r(1 / _r(a * d - _r(b * c)))
    back = _r(jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])]) * inverse)
    return there, back


def _normalised(points: Array) -> tuple[Array, Array]:
    """Points around zero and of unit size, and their size."""
    points = _r(points - _r(jnp.mean(points, axis=0))[None])
    size = _r(jnp.sqrt(jnp.sum(_r(points * points)) / points.shape[0]))
    return _r(points * _r(1 / size)), size
