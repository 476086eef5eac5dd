"""Where a fitted head is in space: the camera, landmarks in millimetres, head pose.

A fit sees the face by weak perspective. With a camera, whose frame begins in the
pinhole, x to the right, y down and z away, two things follow:

    landmarks_3d   each landmark on its own ray, at the depth that its size suggests
    head_pose      the pose at which the rigid 3D shape, seen in perspective, comes
                   nearest to the landmarks
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.linalg import solve_positive
from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDM, PDMParams, project, shape_3d
from jaxclnf.shape.rotation import (
    euler_from_matrix,
    matrix_from_axis_angle,
    matrix_from_euler,
)

_FOCAL_LENGTH, _WIDTH, _HEIGHT = 500.0, 640.0, 480.0
"""A usual webcam: its focal length in pixels of an image of that size."""

_FIRST_DAMPING, _LAST_DAMPING = 1e-3, 1e16


@pytree_dataclass
class Camera:
    """A pinhole camera without lens distortion."""

    fx: Float[Array, "*b"] | float
    """Focal length along x, pixels."""
    fy: Float[Array, "*b"] | float
    """Focal length along y, pixels."""
    cx: Float[Array, "*b"] | float
    """Where the optical axis meets the image, x, pixels."""
    cy: Float[Array, "*b"] | float
    """Where the optical axis meets the image, y, pixels."""

    @classmethod
    def for_image(
        cls,
        height: int,
        width: int,
        *,
        fx: float | None = None,
        fy: float | None = None,
        cx: float | None = None,
        cy: float | None = None,
    ) -> "Camera":
        """The camera of an image, guessed where it is not known.

        A usual webcam is assumed: a focal length of 500 pixels in an image of 640 x
        480, in proportion to width and height, the mean of both for x and y; and the
        optical axis in the middle, at half of width and height.

        Args:
            height: Rows of the image.
            width: Columns of the image.
            fx: Focal length along x, pixels; known together with `fy` or not at all.
            fy: Focal length along y, pixels.
            cx: Optical centre, x, pixels; known together with `cy` or not at all.
            cy: Optical centre, y, pixels.

        Returns:
            The camera.

        Raises:
            ValueError: Only one number of a pair is given. OpenFace takes its own for
                both then, without a word.

        Mirrors:
            The camera of OpenFace's options `-fx -fy -cx -cy`.

        Example:
            >>> camera = Camera.for_image(480, 640)
            >>> camera.fx, camera.fy, camera.cx, camera.cy
            (500.0, 500.0, 320.0, 240.0)
        """
        for names, pair in (("fx and fy", (fx, fy)), ("cx and cy", (cx, cy))):
            if (pair[0] is None) != (pair[1] is None):
                raise ValueError(f"{names} are {pair[0]} and {pair[1]}; expected both")
        guess = _FOCAL_LENGTH * (width / _WIDTH + height / _HEIGHT) / 2
        return cls(
            fx=guess if fx is None else fx,
            fy=guess if fy is None else fy,
            cx=width / 2 if cx is None else cx,
            cy=height / 2 if cy is None else cy,
        )


class _Lens(NamedTuple):
    focal: Float[Array, " 2"]
    centre: Float[Array, " 2"]


class _Problem(NamedTuple):
    shape: Float[Array, "n 3"]
    target: Float[Array, "n 2"]
    focal: Float[Array, " 2"]
    base: Float[Array, "3 3"]


class _Search(NamedTuple):
    pose: Float[Array, " 6"]
    error: Float[Array, ""]
    damping: Float[Array, ""]
    num_steps: Int[Array, ""]
    done: Bool[Array, ""]


def landmarks_3d(pdm: PDM, params: PDMParams, camera: Camera) -> Float[Array, "n 3"]:
    """Landmarks in the camera's frame.

    A face of `scale` pixels per millimetre is `fx / scale` away; each landmark is as
    much nearer or farther as the turned shape says, on the ray through its place in the
    image. This is not the shape at `head_pose`: what is near comes out smaller than it
    is, what is far larger, by up to 2 cm in a face 40 cm away.

    Args:
        pdm: The shape model, of the face or of a part.
        params: The fit.
        camera: The camera.

    Returns:
        Positions `(X, Y, Z)`, millimetres.

    Mirrors:
        CLNF::GetShape.

    Example:
        >>> camera = Camera.for_image(240, 260)
        >>> points = landmarks_3d(pdm, params, camera)
        >>> x = camera.fx * points[:, 0] / points[:, 2] + camera.cx
        >>> bool(jnp.allclose(x, project(pdm, params)[:, 0]))
        True
    """
    lens = _lens(camera, pdm.mean_shape.dtype)
    shape = shape_3d(pdm, params.params_local)
    turned = jnp.matmul(shape, params.rotation.T, precision="highest")
    depth = lens.focal[0] / params.scale + turned[:, 2]
    rays = (project(pdm, params) - lens.centre[None]) / lens.focal[None]
    return jnp.concatenate([rays * depth[:, None], depth[:, None]], axis=1)


@partial(jax.jit, static_argnames="dialect")
def head_pose(
    pdm: PDM,
    params: PDMParams,
    camera: Camera,
    landmarks: Float[Array, "n 2"] | None = None,
    *,
    dialect: Literal["converged", "openface"] = "converged",
) -> Float[Array, " 6"]:
    """Position and orientation of the head in the camera's frame.

    The fitted 3D shape is taken as rigid. Of all its poses, the one whose perspective
    image is nearest to the landmarks (least squares, pixels) is found by
    Levenberg-Marquardt, from where weak perspective sees the head. Derivatives go
    through in forward mode.

    Args:
        pdm: The shape model.
        params: The fit.
        camera: The camera.
        landmarks: The fitted landmarks, pixels; `project(pdm, params)` if not given.
            All of them count, also those that are turned away.
        dialect: `"converged"` starts from the fitted rotation and goes on until the
            image rests. `"openface"` starts from Euler angles that are used as if they
            were an axis-angle vector, and takes no more than 20 steps: far from frontal
            it may end elsewhere, even at some middle place. For successful fits both
            give the same pose.

    Returns:
        `(Tx, Ty, Tz, rx, ry, rz)`: the place of the shape model's origin, millimetres,
        and the angles of `R = Rx Ry Rz`, radians; all NaN if there is none.

    Raises:
        ValueError: The dialect is neither of the two.

    Mirrors:
        GetPose, which gives zeros where we give NaN.

    Example:
        >>> camera = Camera.for_image(240, 260)
        >>> pose = head_pose(pdm, params, camera)
        >>> bool(jnp.allclose(pose[2], camera.fx / params.scale, rtol=0.05))
        True
    """
    if dialect not in ("converged", "openface"):
        raise ValueError(f"dialect is {dialect!r}; expected 'converged' or 'openface'")
    dtype = pdm.mean_shape.dtype
    if landmarks is None:
        landmarks = project(pdm, params)
    lens = _lens(camera, dtype)
    target = landmarks - lens.centre[None]
    distance = lens.focal[0] / params.scale
    ray = (params.translation - lens.centre) / lens.focal
    position = distance * jnp.concatenate([ray, jnp.ones(1, dtype)])
    if dialect == "converged":
        base, turn, max_steps = params.rotation, jnp.zeros(3, dtype), 100
    else:
        base, turn, max_steps = jnp.eye(3, dtype=dtype), params.euler, 20
    problem = _Problem(shape_3d(pdm, params.params_local), target, lens.focal, base)
    pose = jnp.concatenate([turn, position])
    end = lax.while_loop(
        lambda s: ~s.done & (s.num_steps < max_steps),
        lambda s: _step(problem, s),
        _Search(
            pose=pose,
            error=jnp.sum(_misses(problem, pose) ** 2),
            damping=jnp.asarray(_FIRST_DAMPING, dtype),
            num_steps=jnp.zeros((), jnp.int32),
            done=jnp.zeros((), bool),
        ),
    )
    angles = euler_from_matrix(_rotation(problem, end.pose))
    return jnp.where(
        jnp.isfinite(end.error), jnp.concatenate([end.pose[3:], angles]), jnp.nan
    )


def head_pose_wrt_camera(pose: Float[Array, " 6"]) -> Float[Array, " 6"]:
    """The pose as the camera sees it: with angles of 0, the head looks into the camera.

    `head_pose` measures angles against the optical axis. Here the rotation about x and
    y that turns the camera towards the head goes before them.

    Args:
        pose: From `head_pose`.

    Returns:
        The same position, millimetres, and the other angles, radians.

    Mirrors:
        GetPoseWRTCamera.

    Example:
        >>> ahead = jnp.asarray([0.0, 0.0, 600.0, 0.1, 0.2, 0.3])
        >>> bool(jnp.allclose(head_pose_wrt_camera(ahead), ahead, atol=1e-5))
        True
    """
    x, y, z = pose[:3]
    pitch = jnp.arctan2(y, jnp.sqrt(x**2 + z**2))
    yaw = -jnp.arctan2(x, jnp.sqrt(y**2 + z**2))
    towards = matrix_from_euler(jnp.stack([pitch, yaw, jnp.zeros_like(yaw)]))
    turned = jnp.matmul(towards, matrix_from_euler(pose[3:]), precision="highest")
    return jnp.concatenate([pose[:3], euler_from_matrix(turned)])


def _lens(camera: Camera, dtype: jnp.dtype) -> _Lens:
    pairs = (camera.fx, camera.fy), (camera.cx, camera.cy)
    return _Lens(*(jnp.stack([jnp.asarray(x, dtype) for x in pair]) for pair in pairs))


def _rotation(problem: _Problem, pose: Float[Array, " 6"]) -> Float[Array, "3 3"]:
    turn = matrix_from_axis_angle(pose[:3])
    return jnp.matmul(turn, problem.base, precision="highest")


def _placed(problem: _Problem, pose: Float[Array, " 6"]) -> Float[Array, "n 3"]:
    turned = jnp.matmul(problem.shape, _rotation(problem, pose).T, precision="highest")
    return turned + pose[None, 3:]


def _misses(problem: _Problem, pose: Float[Array, " 6"]) -> Float[Array, " k"]:
    placed = _placed(problem, pose)
    seen = problem.focal[None] * placed[:, :2] / placed[:, 2:]
    return (seen - problem.target).reshape(-1)


def _step(problem: _Problem, state: _Search) -> _Search:
    """One step of Marquardt's kind: each unknown is damped in its own unit."""

    def twice(pose: Float[Array, " 6"]) -> tuple[Array, Array]:
        misses = _misses(problem, pose)
        return misses, misses

    columns, misses = jax.jacfwd(twice, has_aux=True)(state.pose)
    unit = 1 / jnp.sqrt(jnp.sum(columns**2, axis=0))
    columns = columns * unit[None]
    normal = jnp.matmul(columns.T, columns, precision="highest")
    damped = normal + state.damping * jnp.eye(6, dtype=normal.dtype)
    slope = jnp.matmul(columns.T, misses, precision="highest")
    step = -solve_positive(damped, slope)
    pose = state.pose + unit * step
    error = jnp.sum(_misses(problem, pose) ** 2)
    rounding = 8 * jnp.finfo(error.dtype).eps
    # Nothing is seen of what lies behind the camera.
    behind = jnp.min(_placed(problem, pose)[:, 2]) <= 0
    bad = ~(error <= state.error * (1 + rounding)) | behind
    # Rounding alone moves the image by some eps of its coordinates, and hides a fall of
    # the error that is as small as the square of such a step.
    rest = (2 * rounding * jnp.max(jnp.abs(problem.target))) ** 2
    moved = jnp.sum(jnp.matmul(columns, step, precision="highest") ** 2)
    at_rest = moved <= jnp.where(bad, rounding * state.error, rest)
    bad &= ~at_rest
    damping = jnp.where(bad, 10 * state.damping, state.damping / 10)
    return _Search(
        pose=jnp.where(bad, state.pose, pose),
        error=jnp.where(bad, state.error, error),
        damping=jnp.maximum(damping, 1 / _LAST_DAMPING),
        num_steps=state.num_steps + (~bad).astype(jnp.int32),
        done=at_rest | (damping > _LAST_DAMPING) | ~jnp.isfinite(state.error),
    )
