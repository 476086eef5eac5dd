"""Camera, landmarks in space and head pose against known poses and OpenCV's solver."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.fitting.pose import (
    Camera,
    head_pose,
    head_pose_wrt_camera,
    landmarks_3d,
)
from jaxclnf.shape.pdm import PDM, PDMParams, project, shape_3d
from jaxclnf.shape.rotation import euler_from_matrix, matrix_from_euler
from tests.synthetic import make_params, make_pdm

CAMERA = Camera(fx=600.0, fy=580.0, cx=310.0, cy=250.0)
POSITION = np.array([-150.0, 90.0, 700.0])
solve = jax.jit(head_pose, static_argnames="dialect")

EULERS = [
    (0.0, 0.0, 0.0),
    (0.1, -0.2, 0.3),
    (-0.4, 0.9, 0.2),
    (0.2, -1.4, -0.3),
    (0.5, 0.3, 1.2),
]


def seen(
    pdm: PDM, euler: tuple[float, ...], position: np.ndarray = POSITION
) -> tuple[PDMParams, jax.Array]:
    """A fit by weak perspective of a head in that pose, and its perspective image."""
    params = make_params(
        pdm,
        scale=float(CAMERA.fx / position[2]),
        euler=(euler[0], euler[1], euler[2]),
        translation=(
            float(CAMERA.fx * position[0] / position[2] + CAMERA.cx),
            float(CAMERA.fy * position[1] / position[2] + CAMERA.cy),
        ),
    )
    shape = np.asarray(pdm.mean_shape) + np.asarray(pdm.princ_comp) @ np.asarray(
        params.params_local
    )
    placed = shape @ np.asarray(params.rotation).T + position
    image = np.array([CAMERA.fx, CAMERA.fy]) * placed[:, :2] / placed[:, 2:]
    return params, jnp.asarray(image + np.array([CAMERA.cx, CAMERA.cy]))


def opencv_pose(
    pdm: PDM, params: PDMParams, landmarks: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """What OpenCV's iterative solver finds from a start given as a rotation vector."""
    camera = [[CAMERA.fx, 0, CAMERA.cx], [0, CAMERA.fy, CAMERA.cy], [0, 0, 1]]
    depth = CAMERA.fx / float(params.scale)
    x, y = np.asarray(params.translation)
    position = depth * np.array(
        [(x - CAMERA.cx) / CAMERA.fx, (y - CAMERA.cy) / CAMERA.fy, 1.0]
    )
    _, turn, position = cv2.solvePnP(
        np.asarray(shape_3d(pdm, params.params_local)),
        np.asarray(landmarks),
        np.asarray(camera, float),
        np.zeros(4),
        np.array(start, float).reshape(3, 1),
        np.asarray(position).reshape(3, 1),
        useExtrinsicGuess=True,
        flags=cv2.SOLVEPNP_ITERATIVE,
    )
    rotation = jnp.asarray(cv2.Rodrigues(turn)[0])
    return np.concatenate([position.ravel(), np.asarray(euler_from_matrix(rotation))])


def test_camera_of_an_image():
    camera = Camera.for_image(375, 500)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (
        390.625,
        390.625,
        250.0,
        187.5,
    )
    wide = Camera.for_image(480, 1280)
    assert (wide.fx, wide.fy, wide.cx, wide.cy) == (750.0, 750.0, 640.0, 240.0)


def test_camera_known_in_part():
    focal = Camera.for_image(480, 640, fx=700.0, fy=710.0)
    assert (focal.fx, focal.fy, focal.cx, focal.cy) == (700.0, 710.0, 320.0, 240.0)
    centre = Camera.for_image(480, 640, cx=300.0, cy=0.0)
    assert (centre.fx, centre.fy, centre.cx, centre.cy) == (500.0, 500.0, 300.0, 0.0)
    with pytest.raises(ValueError, match="fx and fy are 700.0 and None; expected both"):
        Camera.for_image(480, 640, fx=700.0, cx=300.0, cy=200.0)
    with pytest.raises(ValueError, match="cx and cy are None and 200.0"):
        Camera.for_image(480, 640, cy=200.0)


def test_landmarks_lie_on_their_rays():
    pdm = make_pdm()
    params = make_params(pdm)
    points = np.asarray(landmarks_3d(pdm, params, CAMERA))
    focal = np.array([CAMERA.fx, CAMERA.fy])
    image = focal * points[:, :2] / points[:, 2:] + np.array([CAMERA.cx, CAMERA.cy])
    np.testing.assert_allclose(image, project(pdm, params), rtol=0, atol=1e-9)
    turned = shape_3d(pdm, params.params_local) @ params.rotation.T
    depth = points[:, 2] - np.asarray(turned)[:, 2]
    np.testing.assert_allclose(depth, CAMERA.fx / float(params.scale), rtol=1e-12)


@pytest.mark.parametrize("dialect", ["converged", "openface"])
@pytest.mark.parametrize("euler", EULERS)
def test_known_poses_are_found(euler, dialect):
    pdm = make_pdm()
    params, image = seen(pdm, euler)
    # From a start that is off in every direction.
    start = make_params(
        pdm,
        scale=1.1 * float(params.scale),
        euler=(euler[0] + 0.1, euler[1] - 0.1, euler[2] + 0.1),
        translation=(float(params.translation[0]) + 9, float(params.translation[1])),
    )
    pose = solve(pdm, start, CAMERA, image, dialect=dialect)
    np.testing.assert_allclose(pose[:3], POSITION, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        matrix_from_euler(pose[3:]), params.rotation, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("euler", EULERS)
def test_same_minimum_as_opencv(euler):
    """The landmarks of a weak-perspective fit are no perspective image: a residual."""
    pdm = make_pdm()
    params, _ = seen(pdm, euler)
    landmarks = project(pdm, params)
    start = cv2.Rodrigues(np.asarray(params.rotation))[0]
    expected = opencv_pose(pdm, params, np.asarray(landmarks), start)
    found = solve(pdm, params, CAMERA)
    np.testing.assert_allclose(found[:3], expected[:3], rtol=0, atol=1e-3)
    np.testing.assert_allclose(
        matrix_from_euler(found[3:]),
        matrix_from_euler(jnp.asarray(expected[3:])),
        rtol=0,
        atol=1e-5,
    )


def test_openface_goes_where_its_wrong_start_leads():
    """Euler angles as a rotation vector: steps as OpenCV's, even if they go astray."""
    pdm = make_pdm()
    rng = np.random.default_rng(0)
    eulers = rng.uniform(-1, 1, (24, 3)) * [3.0, 1.5, 3.0]
    astray = 0
    for euler in eulers:
        params, image = seen(pdm, tuple(euler))
        start = np.asarray(params.euler)
        expected = opencv_pose(pdm, params, np.asarray(image), start)
        found = np.asarray(solve(pdm, params, CAMERA, image, dialect="openface"))
        np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-4, atol=0.01)
        right = solve(pdm, params, CAMERA, image)
        np.testing.assert_allclose(right[:3], POSITION, rtol=0, atol=1e-6)
        astray += bool(np.max(np.abs(found[:3] - POSITION)) > 1)
    assert 0 < astray < len(eulers)


def test_pose_seen_from_the_camera():
    """A head turned so that it looks into the camera has no angles left there."""
    x, y, z = POSITION
    ray = POSITION / np.linalg.norm(POSITION)
    # Its z axis goes along the ray, its x axis stays level or nearly so.
    pitch, yaw = np.arctan2(y, np.hypot(x, z)), -np.arctan2(x, np.hypot(y, z))
    towards = np.asarray(matrix_from_euler(jnp.asarray([pitch, yaw, 0.0])))
    euler = euler_from_matrix(jnp.asarray(towards.T))
    pose = jnp.concatenate([jnp.asarray(POSITION), euler])
    found = head_pose_wrt_camera(pose)
    np.testing.assert_allclose(found[3:], 0, atol=1e-12)
    np.testing.assert_array_equal(found[:3], POSITION)
    # The two turns together miss the ray by a little, as OpenFace's do.
    assert (towards @ ray)[2] > 0.999
    # A head to the right that looks ahead shows the camera its other side.
    ahead = head_pose_wrt_camera(jnp.asarray([300.0, 0, 600, 0, 0, 0]))
    np.testing.assert_allclose(ahead[3:], [0, -np.arctan(0.5), 0], atol=1e-12)


def test_single_precision():
    pdm, pdm32 = make_pdm(), make_pdm(dtype=np.float32)
    for euler in EULERS:
        params, _ = seen(pdm, euler)
        params32 = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        # The camera's numbers may be of any precision.
        camera = jax.tree.map(jnp.asarray, CAMERA)
        pose = solve(pdm, params, CAMERA)
        pose32 = solve(pdm32, params32, camera)
        assert pose.dtype == jnp.float64 and pose32.dtype == jnp.float32
        np.testing.assert_allclose(pose32[:3], pose[:3], rtol=0, atol=0.02)
        points = landmarks_3d(pdm32, params32, camera)
        assert points.dtype == jnp.float32
        assert head_pose_wrt_camera(pose32).dtype == jnp.float32


def test_many_heads_at_once():
    """Each ends by itself, and one that is unusable changes nothing for the others."""
    pdm = make_pdm()
    singles = [seen(pdm, euler)[0] for euler in EULERS]
    many = jax.tree.map(lambda *x: jnp.stack(x), *singles)
    solve_all = jax.jit(jax.vmap(lambda p: head_pose(pdm, p, CAMERA)))
    good = np.asarray(solve_all(many))
    for params, pose in zip(singles, good, strict=True):
        np.testing.assert_allclose(
            solve(pdm, params, CAMERA), pose, rtol=1e-7, atol=1e-7
        )
    scale = many.scale.at[1].set(jnp.nan).at[3].set(0.0)
    broken = PDMParams(
        scale=scale,
        rotation=many.rotation,
        translation=many.translation,
        params_local=many.params_local,
    )
    found = np.asarray(solve_all(broken))
    assert np.isnan(found[[1, 3]]).all()
    np.testing.assert_array_equal(found[[0, 2, 4]], good[[0, 2, 4]])


def test_cameras_in_a_batch():
    pdm = make_pdm()
    params = make_params(pdm)
    cameras = Camera(
        fx=jnp.asarray([500.0, 900.0]),
        fy=jnp.asarray([500.0, 900.0]),
        cx=jnp.asarray([130.0, 130.0]),
        cy=jnp.asarray([120.0, 120.0]),
    )
    poses = jax.vmap(solve, (None, None, 0))(pdm, params, cameras)
    points = jax.vmap(landmarks_3d, (None, None, 0))(pdm, params, cameras)
    np.testing.assert_allclose(poses[1, 2] / poses[0, 2], 1.8, rtol=0.01)
    assert points.shape == (2, 12, 3)


def test_forward_derivatives():
    pdm = make_pdm()
    params = make_params(pdm)

    def depth(scale: jax.Array) -> jax.Array:
        moved = PDMParams(
            scale=scale,
            rotation=params.rotation,
            translation=params.translation,
            params_local=params.params_local,
        )
        return solve(pdm, moved, CAMERA)[2]

    h = 1e-4
    difference = (depth(params.scale + h) - depth(params.scale - h)) / (2 * h)
    slope = jax.jit(jax.jacfwd(depth))(params.scale)
    np.testing.assert_allclose(slope, difference, rtol=1e-4)


def test_unknown_dialect():
    pdm = make_pdm()
    params = make_params(pdm)
    with pytest.raises((ValueError, TypeError), match="dialect"):
        head_pose(pdm, params, CAMERA, dialect="opencv")  # pyright: ignore[reportArgumentType]
