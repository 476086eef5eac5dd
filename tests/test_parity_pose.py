"""Camera, head pose and landmarks in space against the C++ program's arrays.

Nearly all is computed in float64 here. What remains is the reference's float32 input
and, in angles, where OpenCV's solver stops: when a step is below 1.2e-7 of the length
of a vector that the translation in millimetres dominates.
"""

import json
from pathlib import Path

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
from jaxclnf.shape.pdm import PDM, PDMParams
from tests.reference import largest, params_from, pdm_from

pytestmark = [pytest.mark.shared, pytest.mark.slow]

CONFIGURATIONS = (
    "clnf_general",
    "clnf_general_nohier",
    "clnf_general_wildparams",
    "clnf_wild",
    "clm_general",
    "clnf_multi_pie",
)
FITS = [
    f"fits_{configuration}_{starts}"
    for configuration in CONFIGURATIONS
    for starts in ("single", "multi")
]
VIDEOS = ["video_clnf_general", "video_clnf_wild_default"]

CAMERA_TOL = 1e-4  # px; float32 at up to 1024
SHAPE_TOL = 5e-5  # mm; float32 at up to 500
# 2.6e-4 mm and 8.5e-6 rad measured, Tz up to 7300 mm.
POSITION_TOL, ANGLE_TOL = 5e-4, 2e-5
# In float32: 0.017 mm and 8.4e-5 rad for 775 of the 776 heads. The other is a failed
# fit with its pitch at -2.5; 20 steps later the reference is 7.3 m away and not at rest
# yet. There we are 0.46 mm off.
POSITION_TOL_32, ANGLE_TOL_32 = 0.05, 5e-4

solve = jax.jit(
    jax.vmap(
        lambda pdm, params, camera, landmarks, dialect: head_pose(
            pdm, params, camera, landmarks, dialect=dialect
        ),
        (None, 0, 0, 0, None),
    ),
    static_argnums=4,
)


class Heads:
    """The fits of one reference file, in some precision."""

    def __init__(self, golden: Path, name: str, dtype: type) -> None:
        with np.load(golden / f"{name}.npz") as file:
            self.arrays = dict(file)
        model = "multi_pie_68" if "multi_pie" in name else "in_the_wild_68"
        with np.load(golden / f"pdm_{model}.npz") as file:
            self.pdm: PDM = cast(pdm_from(file), dtype)
        num = len(self.arrays["pose"])
        self.params: PDMParams = params_from(
            self.arrays["params_global"].astype(dtype),
            self.arrays["params_local"].astype(dtype),
        )
        camera = np.broadcast_to(self.arrays["camera"], (num, 4)).astype(dtype).T
        fx, fy, cx, cy = map(jnp.asarray, camera)
        self.camera = Camera(fx=fx, fy=fy, cx=cx, cy=cy)
        self.landmarks = jnp.asarray(self.arrays["landmarks"].astype(dtype))

    def poses(self, dialect: str) -> np.ndarray:
        """What we find."""
        return np.asarray(
            solve(self.pdm, self.params, self.camera, self.landmarks, dialect)
        )


def cast(pdm: PDM, dtype: type) -> PDM:
    """A shape model in another precision."""
    return jax.tree.map(lambda x: x.astype(dtype), pdm)


@pytest.mark.parametrize("name", FITS)
def test_camera(name, golden):
    with np.load(golden / f"{name}.npz") as file:
        images, cameras = file["image"], file["camera"]
    pictures = json.loads((golden / "mtcnn.json").read_text())
    for image, camera in zip(images, cameras, strict=True):
        height, width = pictures[str(image)]["shape"][:2]
        found = Camera.for_image(height, width)
        ours = np.array([found.fx, found.fy, found.cx, found.cy])
        assert largest(ours - camera) < CAMERA_TOL


def test_camera_of_the_video(golden):
    with np.load(golden / "video_clnf_general.npz") as file:
        height, width = file["gray_frames"].shape[1:]
        found = Camera.for_image(height, width)
        ours = np.array([found.fx, found.fy, found.cx, found.cy])
        assert largest(ours - file["camera"]) == 0


@pytest.mark.parametrize("name", FITS + VIDEOS)
def test_openface_pose(name, golden):
    """Of failed fits too."""
    heads = Heads(golden, name, np.float64)
    poses = heads.poses("openface")
    difference = poses - heads.arrays["pose"]
    assert largest(difference[:, :3]) < POSITION_TOL
    assert largest(difference[:, 3:]) < ANGLE_TOL
    seen = jax.vmap(head_pose_wrt_camera)(jnp.asarray(poses))
    difference = np.asarray(seen) - heads.arrays["pose_wrt_camera"]
    assert largest(difference[:, :3]) < POSITION_TOL
    assert largest(difference[:, 3:]) < ANGLE_TOL


@pytest.mark.parametrize("name", FITS + VIDEOS)
def test_openface_pose_in_single_precision(name, golden):
    heads = Heads(golden, name, np.float32)
    difference = np.abs(heads.poses("openface") - heads.arrays["pose"])
    off = (difference[:, :3].max(axis=1) > POSITION_TOL_32) | (
        difference[:, 3:].max(axis=1) > ANGLE_TOL_32
    )
    assert np.isfinite(difference).all()
    assert np.sum(off) == (name == "fits_clnf_multi_pie_multi")
    assert not np.any(off & heads.arrays["success"])


@pytest.mark.parametrize("name", FITS + VIDEOS)
def test_right_start_ends_at_the_same_pose(name, golden):
    """Wherever OpenFace comes to rest; for every successful fit."""
    heads = Heads(golden, name, np.float64)
    difference = np.abs(heads.poses("converged") - heads.arrays["pose"])
    off = (difference[:, :3].max(axis=1) > POSITION_TOL) | (
        difference[:, 3:].max(axis=1) > ANGLE_TOL
    )
    assert np.isfinite(difference).all()
    assert np.sum(off) == (name == "fits_clnf_multi_pie_multi")
    assert not np.any(off & heads.arrays["success"])


@pytest.mark.parametrize("name", VIDEOS)
def test_landmarks_in_space(name, golden):
    heads = Heads(golden, name, np.float64)
    found = jax.vmap(landmarks_3d, (None, 0, 0))(heads.pdm, heads.params, heads.camera)
    reference = np.moveaxis(heads.arrays["shape3d_camera"], 1, 2)
    assert largest(np.asarray(found) - reference) < SHAPE_TOL


def test_rows_of_the_table(golden):
    """The table of the video has these columns, rounded; `pose`, not `wrt_camera`."""
    lines = (golden / "FeatureExtraction_default.csv").read_text().splitlines()
    columns = {name: i for i, name in enumerate(lines[0].split(", "))}
    heads = Heads(golden, "video_clnf_general", np.float64)
    poses = heads.poses("openface")
    points = jax.vmap(landmarks_3d, (None, 0, 0))(heads.pdm, heads.params, heads.camera)
    for line, pose, shape in zip(lines[1:], poses, np.asarray(points), strict=False):
        values = line.split(", ")
        first = columns["pose_Tx"]
        assert values[first : first + 3] == [f"{x:.1f}" for x in pose[:3]]
        assert values[first + 3 : first + 6] == [f"{x:.3f}" for x in pose[3:]]
        first = columns["X_0"]
        assert values[first : first + 204] == [f"{x:.1f}" for x in shape.T.ravel()]
    assert len(lines) == 21
