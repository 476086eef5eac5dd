"""Rotations in 3D: Euler angles, axis-angle vectors, matrices, and the small step.

Euler angles are OpenFace's: `R = Rx(pitch) Ry(yaw) Rz(roll)`, radians. Every function
works on one rotation; use `jax.vmap` for many.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def cross_matrix(w: Float[Array, " 3"]) -> Float[Array, "3 3"]:
    """The matrix `[w]x` with `[w]x @ v == cross(w, v)`.

    Args:
        w: A vector.

    Returns:
        Its skew-symmetric matrix.

    Example:
        >>> w, v = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([0.0, 1.0, 0.0])
        >>> bool(jnp.all(cross_matrix(w) @ v == jnp.cross(w, v)))
        True
    """
    x, y, z = w
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return jnp.stack([jnp.stack(row) for row in rows])


def matrix_from_euler(euler: Float[Array, " 3"]) -> Float[Array, "3 3"]:
    """Rotation matrix of `(pitch, yaw, roll)`.

    Args:
        euler: Angles about x, y and z, radians.

    Returns:
        `Rx @ Ry @ Rz`.

    Mirrors:
        Utilities::Euler2RotationMatrix.

    Example:
        >>> bool(jnp.allclose(matrix_from_euler(jnp.zeros(3)), jnp.eye(3)))
        True
    """
    s1, s2, s3 = jnp.sin(euler)
    c1, c2, c3 = jnp.cos(euler)
    rows = [
        [c2 * c3, -c2 * s3, s2],
        [c1 * s3 + c3 * s1 * s2, c1 * c3 - s1 * s2 * s3, -c2 * s1],
        [s1 * s3 - c1 * c3 * s2, c3 * s1 + c1 * s2 * s3, c1 * c2],
    ]
    return jnp.stack([jnp.stack(row) for row in rows])


def euler_from_matrix(rotation: Float[Array, "3 3"]) -> Float[Array, " 3"]:
    """Angles `(pitch, yaw, roll)` of a rotation matrix, yaw within +-pi/2.

    At a yaw of exactly +-pi/2 only the sum or difference of pitch and roll is
    determined; whichever pitch rounding leaves there, roll and yaw are read off after
    undoing it, so that `matrix_from_euler` always gives the matrix back.

    Args:
        rotation: A rotation matrix.

    Returns:
        Angles in radians.

    Mirrors:
        Utilities::RotationMatrix2Euler, whose quaternion loses half of the digits near
        +-pi/2 and fails at rotations by pi; this one does neither.

    Example:
        >>> euler = jnp.asarray([0.1, 1.5707, -0.3])
        >>> back = euler_from_matrix(matrix_from_euler(euler))
        >>> bool(jnp.allclose(back, euler, atol=1e-3))
        True
    """
    pitch = jnp.arctan2(-rotation[1, 2], rotation[2, 2])
    s1, c1 = jnp.sin(pitch), jnp.cos(pitch)
    # The two rows below are those of Rx(pitch).T @ rotation == Ry(yaw) @ Rz(roll).
    row_y = c1 * rotation[1] + s1 * rotation[2]
    row_z = c1 * rotation[2] - s1 * rotation[1]
    yaw = jnp.arctan2(rotation[0, 2], row_z[2])
    roll = jnp.arctan2(row_y[0], row_y[1])
    return jnp.stack([pitch, yaw, roll])


def matrix_from_axis_angle(axis_angle: Float[Array, " 3"]) -> Float[Array, "3 3"]:
    """Rotation about `axis_angle` by its length (the exponential map).

    Args:
        axis_angle: Axis times angle, radians.

    Returns:
        The rotation matrix; value and derivatives are right at zero too.

    Mirrors:
        Utilities::AxisAngle2RotationMatrix.

    Example:
        >>> quarter = matrix_from_axis_angle(jnp.asarray([0.0, 0.0, jnp.pi / 2]))
        >>> bool(jnp.allclose(quarter @ jnp.eye(3)[0], jnp.eye(3)[1], atol=1e-6))
        True
    """
    squared = jnp.sum(axis_angle**2)
    # Below this angle the first omitted terms of the series are under rounding; the
    # inner `where` keeps 0/0 out of the derivative of the branch not taken.
    near_zero = squared < 1e-4
    safe = jnp.where(near_zero, 1.0, squared)
    angle = jnp.sqrt(safe)
    sine = jnp.where(
        near_zero, 1 - squared / 6 + squared**2 / 120, jnp.sin(angle) / angle
    )
    cosine = jnp.where(
        near_zero,
        0.5 - squared / 24 + squared**2 / 720,
        2 * (jnp.sin(angle / 2) / angle) ** 2,
    )
    skew = cross_matrix(axis_angle)
    return (
        jnp.eye(3, dtype=axis_angle.dtype)
        + sine * skew
        + cosine * jnp.matmul(skew, skew, precision="highest")
    )


def axis_angle_from_matrix(rotation: Float[Array, "3 3"]) -> Float[Array, " 3"]:
    """Axis times angle of a rotation matrix, with an angle of at most pi.

    Goes through the quaternion, built from its largest component so that no
    cancellation occurs at zero nor near pi. At exactly pi, where both signs of the axis
    are the same rotation, one of them is returned.

    Args:
        rotation: A rotation matrix.

    Returns:
        Axis times angle, radians.

    Mirrors:
        Utilities::RotationMatrix2AxisAngle.

    Example:
        >>> v = jnp.asarray([0.3, -0.2, 3.0])
        >>> back = axis_angle_from_matrix(matrix_from_axis_angle(v))
        >>> bool(jnp.allclose(back, v, atol=1e-5))
        True
    """
    r = rotation
    # Row j is 4 q_j (q_0, q_1, q_2, q_3) for the unit quaternion q of this rotation.
    rows = jnp.stack(
        [
            jnp.stack(
                [
                    1 + r[0, 0] + r[1, 1] + r[2, 2],
                    r[2, 1] - r[1, 2],
                    r[0, 2] - r[2, 0],
                    r[1, 0] - r[0, 1],
                ]
            ),
            jnp.stack(
                [
                    r[2, 1] - r[1, 2],
                    1 + r[0, 0] - r[1, 1] - r[2, 2],
                    r[0, 1] + r[1, 0],
                    r[0, 2] + r[2, 0],
                ]
            ),
            jnp.stack(
                [
                    r[0, 2] - r[2, 0],
                    r[0, 1] + r[1, 0],
                    1 - r[0, 0] + r[1, 1] - r[2, 2],
                    r[1, 2] + r[2, 1],
                ]
            ),
            jnp.stack(
                [
                    r[1, 0] - r[0, 1],
                    r[0, 2] + r[2, 0],
                    r[1, 2] + r[2, 1],
                    1 - r[0, 0] - r[1, 1] + r[2, 2],
                ]
            ),
        ]
    )
    quaternion = rows[jnp.argmax(jnp.diagonal(rows))]
    quaternion = quaternion / jnp.sqrt(jnp.sum(quaternion**2))
    quaternion = quaternion * jnp.where(quaternion[0] < 0, -1.0, 1.0)
    vector = quaternion[1:]
    squared = jnp.sum(vector**2)
    near_zero = squared < 1e-6
    sine = jnp.sqrt(jnp.where(near_zero, 1.0, squared))
    factor = jnp.where(
        near_zero, 2 + squared / 3, 2 * jnp.arctan2(sine, quaternion[0]) / sine
    )
    return factor * vector


def small_rotation(w: Float[Array, " 3"]) -> Float[Array, "3 3"]:
    """The rotation nearest to `I + [w]x`: about `w`, by the angle `arctan |w|`.

    This is what OpenFace's SVD orthonormalisation of `I + [w]x` amounts to, in closed
    form: with `c = 1 / sqrt(1 + |w|^2)`, the cosine of the angle, it is
    `c I + c [w]x + c^2 / (1 + c) w w^T`, smooth everywhere. It agrees with the
    exponential map to second order.

    Args:
        w: Axis times the tangent of the angle.

    Returns:
        A rotation matrix.

    Mirrors:
        PDM::Orthonormalise applied to `I + [w]x`.

    Example:
        >>> rotation = small_rotation(jnp.asarray([0.0, 0.0, 1.0]))
        >>> bool(jnp.allclose(euler_from_matrix(rotation)[2], jnp.pi / 4))
        True
    """
    cosine = 1 / jnp.sqrt(1 + jnp.sum(w**2))
    return (
        cosine * (jnp.eye(3, dtype=w.dtype) + cross_matrix(w))
        + cosine**2 / (1 + cosine) * w[:, None] * w[None, :]
    )
