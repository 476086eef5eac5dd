"""The 3D point distribution model (PDM): shapes, projection, Jacobian, small moves.

    shape_3d   X(q) = mean_shape + princ_comp q                       millimetres
    project    x = scale * R[:2] X + translation                      image pixels
    retract    p (+) d: scale, translation and modes add, R <- R small_rotation(w)

The Jacobian is the derivative of `project` along `retract` at a zero step, so its
rotation columns are derivatives along the tangent, not along Euler angles.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.rotation import (
    cross_matrix,
    euler_from_matrix,
    matrix_from_euler,
    small_rotation,
)

NUM_RIGID = 6
"""Tangent entries before the modes: scale, three of the rotation, translation x, y."""


@pytree_dataclass
class PDM:
    """A linear model of 3D landmark shapes with independent Gaussian mode weights."""

    mean_shape: Float[Array, "n 3"]
    """Mean position of each landmark, millimetres; x right, y down, z away."""
    princ_comp: Float[Array, "n 3 m"]
    """How each mode moves each landmark."""
    eigen_values: Float[Array, " m"]
    """Variance of each mode's weight, largest first."""

    @property
    def num_landmarks(self) -> int:
        """Number of landmarks, n."""
        return self.mean_shape.shape[-2]

    @property
    def num_modes(self) -> int:
        """Number of modes, m."""
        return self.eigen_values.shape[-1]


@pytree_dataclass
class PDMParams:
    """Where a face is and which shape it has: a point of the model's manifold."""

    scale: Float[Array, ""]
    """Image pixels per millimetre."""
    rotation: Float[Array, "3 3"]
    """Rotation matrix from the face's frame to the camera's."""
    translation: Float[Array, " 2"]
    """Image position of the model's origin, pixels."""
    params_local: Float[Array, " m"]
    """Weights of the modes."""

    @classmethod
    def from_global(
        cls, params_global: Float[Array, " 6"], params_local: Float[Array, " m"]
    ) -> "PDMParams":
        """Parameters from OpenFace's vector form.

        Args:
            params_global: `(scale, pitch, yaw, roll, tx, ty)`, radians and pixels.
            params_local: Weights of the modes.

        Returns:
            The same pose with its rotation as a matrix.

        Example:
            >>> vector = jnp.asarray([2.0, 0.1, 0.2, 0.3, 50.0, 60.0])
            >>> moved = PDMParams.from_global(vector, params.params_local)
            >>> bool(jnp.allclose(moved.params_global, vector, atol=1e-5))
            True
        """
        return cls(
            scale=params_global[0],
            rotation=matrix_from_euler(params_global[1:4]),
            translation=params_global[4:6],
            params_local=params_local,
        )

    def moved(self, by: Float[Array, " 2"]) -> "PDMParams":
        """The same face elsewhere in the image; parameters may have leading axes.

        Args:
            by: How far to move it, pixels.

        Returns:
            The parameters with `by` added to the translation.

        Example:
            >>> there = params.moved(jnp.asarray([10.0, 0.0]))
            >>> [round(x, 3) for x in (there.translation - params.translation).tolist()]
            [10.0, 0.0]
        """
        axes = (1,) * (self.translation.ndim - 1)
        translation = self.translation + by.reshape(*axes, 2)
        return dataclasses.replace(self, translation=translation)

    @property
    def euler(self) -> Float[Array, " 3"]:
        """Pitch, yaw and roll, radians; of a single pose (no batch axes)."""
        return euler_from_matrix(self.rotation)

    @property
    def params_global(self) -> Float[Array, " 6"]:
        """OpenFace's `(scale, pitch, yaw, roll, tx, ty)` of a single pose."""
        return jnp.concatenate([self.scale[None], self.euler, self.translation])


def _rotate(
    rotation: Float[Array, "r 3"], vectors: Float[Array, "n 3 *k"]
) -> Float[Array, "n r *k"]:
    # Three multiply-adds written out: exact float32 on every backend (no TF32), and
    # one fused loop on CPU where a tiny matrix product would be a library call.
    r = rotation.reshape(rotation.shape + (1,) * (vectors.ndim - 2))
    return sum(r[None, :, j] * vectors[:, None, j] for j in range(3))  # pyright: ignore[reportReturnType]


def shape_3d(pdm: PDM, params_local: Float[Array, " m"]) -> Float[Array, "n 3"]:
    """The 3D shape of some mode weights, in the face's own frame.

    Args:
        pdm: The model.
        params_local: Weights of the modes.

    Returns:
        Landmark positions, millimetres.

    Mirrors:
        PDM::CalcShape3D.

    Example:
        >>> shape = shape_3d(pdm, jnp.zeros(pdm.num_modes))
        >>> bool(jnp.allclose(shape, pdm.mean_shape))
        True
    """
    return pdm.mean_shape + jnp.matmul(
        pdm.princ_comp, params_local, precision="highest"
    )


def project(pdm: PDM, params: PDMParams) -> Float[Array, "n 2"]:
    """Landmarks in the image by weak perspective.

    Args:
        pdm: The model.
        params: Pose and mode weights.

    Returns:
        Landmark positions `(x, y)`, pixels.

    Mirrors:
        PDM::CalcShape2D.

    Example:
        >>> project(pdm, params).shape == (pdm.num_landmarks, 2)
        True
    """
    shape = shape_3d(pdm, params.params_local)
    return params.scale * _rotate(params.rotation[:2], shape) + params.translation[None]


def _rigid_columns(
    params: PDMParams, shape: Float[Array, "n 3"]
) -> Float[Array, "n 2 6"]:
    # A landmark X turns about axis k by R (e_k x X) = (X x r)_k for a row r of R: like
    # R X linear in X, with the matrix that crosses with r.
    camera = params.rotation[:2]
    turns = params.scale * jax.vmap(cross_matrix)(camera)
    linear = jnp.concatenate([camera[..., None], turns], axis=-1)
    scale_and_rotation = sum(
        shape[:, j, None, None] * linear[None, :, j] for j in range(3)
    )
    translation = jnp.broadcast_to(
        jnp.eye(2, dtype=shape.dtype), (shape.shape[0], 2, 2)
    )
    return jnp.concatenate([scale_and_rotation, translation], axis=-1)  # pyright: ignore[reportArgumentType]


def rigid_jacobian(pdm: PDM, params: PDMParams) -> Float[Array, "n 2 6"]:
    """Derivative of `project` along the pose directions of `retract`.

    Args:
        pdm: The model.
        params: Where to differentiate.

    Returns:
        Columns: scale, rotation about x, y and z of the face's own frame, translation
        x and y. Pixels per unit of each.

    Mirrors:
        PDM::ComputeRigidJacobian.

    Example:
        >>> rigid_jacobian(pdm, params).shape == (pdm.num_landmarks, 2, 6)
        True
    """
    return _rigid_columns(params, shape_3d(pdm, params.params_local))


def jacobian(pdm: PDM, params: PDMParams) -> Float[Array, "n 2 d"]:
    """Derivative of `project` along `retract`: pose, then modes.

    Args:
        pdm: The model.
        params: Where to differentiate.

    Returns:
        The six columns of `rigid_jacobian`, then one per mode; `d = 6 + m`.

    Mirrors:
        PDM::ComputeJacobian.

    Example:
        >>> automatic = jax.jacfwd(lambda d: project(pdm, retract(params, d)))
        >>> zero = jnp.zeros(6 + pdm.num_modes)
        >>> bool(jnp.allclose(jacobian(pdm, params), automatic(zero), atol=1e-4))
        True
    """
    modes = params.scale * _rotate(params.rotation[:2], pdm.princ_comp)
    return jnp.concatenate([rigid_jacobian(pdm, params), modes], axis=-1)


def retract(params: PDMParams, delta: Float[Array, " d"]) -> PDMParams:
    """Moves parameters along a tangent vector.

    Scale, translation and mode weights are added. The three rotation entries are a
    small rotation in the face's own frame, applied on the right of the current one, so
    `delta` is not a difference of Euler angles.

    Args:
        params: Where to start.
        delta: Step ordered as the columns of `jacobian`; only its first six entries
            move the pose alone.

    Returns:
        The moved parameters, not clamped.

    Raises:
        ValueError: The step has not that many entries.

    Mirrors:
        PDM::UpdateModelParameters, with its SVD in closed form and without the detour
        over Euler angles.

    Example:
        >>> moved = retract(params, jnp.zeros(6))
        >>> bool(jnp.allclose(project(pdm, moved), project(pdm, params), atol=1e-4))
        True
    """
    num_modes = params.params_local.shape[-1]
    if delta.shape not in ((NUM_RIGID,), (NUM_RIGID + num_modes,)):
        raise ValueError(
            f"delta has shape {delta.shape}; expected {NUM_RIGID} entries, or"
            f" {NUM_RIGID + num_modes} with those of the modes"
        )
    turned = jnp.matmul(
        params.rotation, small_rotation(delta[1:4]), precision="highest"
    )
    # One Newton-Schulz step: hundreds of float32 products would otherwise drift away
    # from the rotations. It leaves a rotation as it is, to second order.
    gram = jnp.matmul(turned.T, turned, precision="highest")
    correction = 1.5 * jnp.eye(3, dtype=turned.dtype) - 0.5 * gram
    local = params.params_local
    if delta.shape[0] > NUM_RIGID:
        local = local + delta[NUM_RIGID:]
    return PDMParams(
        scale=params.scale + delta[0],
        rotation=jnp.matmul(turned, correction, precision="highest"),
        translation=params.translation + delta[4:6],
        params_local=local,
    )


def mode_bounds(pdm: PDM, n_sigmas: Float[Array, ""] | float) -> Float[Array, " m"]:
    """Largest magnitude allowed for each mode's weight.

    Args:
        pdm: The model.
        n_sigmas: Bound in standard deviations of each mode.

    Returns:
        `n_sigmas * sqrt(eigen_values)`.

    Example:
        >>> bool(jnp.allclose(mode_bounds(pdm, 3.0) ** 2, 9 * pdm.eigen_values))
        True
    """
    variances = pdm.eigen_values
    count = jnp.asarray(n_sigmas, variances.dtype)
    unbounded = jnp.isposinf(count)  # as by the variances has no derivative
    bounds = jnp.where(unbounded, 1, count) * jnp.sqrt(variances)
    return jnp.where(unbounded, jnp.inf, bounds)


def clamp(
    pdm: PDM, params: PDMParams, n_sigmas: Float[Array, ""] | float = 3.0
) -> PDMParams:
    """Limits every mode weight to `n_sigmas` standard deviations; the pose is kept.

    Args:
        pdm: The model.
        params: Parameters to limit.
        n_sigmas: Bound in standard deviations of each mode.

    Returns:
        The limited parameters.

    Mirrors:
        PDM::Clamp.

    Example:
        >>> far = retract(params, jnp.full(6 + pdm.num_modes, 1e6))
        >>> bound = mode_bounds(pdm, 3.0)
        >>> bool(jnp.allclose(clamp(pdm, far).params_local, bound))
        True
    """
    bound = mode_bounds(pdm, n_sigmas)
    return PDMParams(
        scale=params.scale,
        rotation=params.rotation,
        translation=params.translation,
        params_local=jnp.clip(params.params_local, -bound, bound),
    )


def bounding_box(landmarks: Float[Array, "n 2"]) -> Float[Array, " 4"]:
    """Smallest upright box around some points.

    Args:
        landmarks: Points `(x, y)`.

    Returns:
        `(x, y, width, height)`.

    Mirrors:
        PDM::CalcBoundingBox.

    Example:
        >>> bounding_box(jnp.asarray([[1.0, 2.0], [4.0, 8.0]])).tolist()
        [1.0, 2.0, 3.0, 6.0]
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    return jnp.concatenate([low, high - low])
