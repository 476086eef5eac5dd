"""Face boxes from the Haar cascade."""

import json

import numpy as np
import pytest

from jaxclnf.detect import haar
from jaxclnf.detect.haar import boxes_from_haar, detect_faces

# The reference computes its correction in float32, at coordinates up to 2000.
TOLERANCE = 1e-4


@pytest.mark.shared
def test_every_face_of_the_reference_is_found(golden):
    expected = json.loads((golden / "mtcnn.json").read_text())
    pictures = np.load(golden / "gray_images.npz")
    assert len(expected) == len(pictures.files)
    for name, faces in expected.items():
        found = detect_faces(pictures[name.replace(".", "_")])
        reference = sorted(faces["haar"], key=lambda box: (-box[2], box[0]))
        np.testing.assert_allclose(
            found, np.reshape(reference, (-1, 4)), rtol=0, atol=TOLERANCE, err_msg=name
        )


@pytest.mark.shared
def test_correction_is_that_of_the_reference(golden):
    for faces in json.loads((golden / "mtcnn.json").read_text()).values():
        raw = sorted(faces["haar_raw"], key=lambda box: (-box[2], box[0]))
        reference = sorted(faces["haar"], key=lambda box: (-box[2], box[0]))
        np.testing.assert_allclose(
            boxes_from_haar(np.array(raw)),
            np.reshape(reference, (-1, 4)),
            rtol=0,
            atol=TOLERANCE,
        )


def test_boxes_are_sorted_by_size_then_position():
    raw = np.array([[9, 1, 50, 50], [5, 2, 50, 50], [0, 0, 80, 80], [5, 1, 50, 50]])
    boxes = boxes_from_haar(raw)
    np.testing.assert_array_equal(boxes, boxes_from_haar(raw[::-1]))
    np.testing.assert_allclose(
        boxes[:, 0] - 0.0578 * np.array([80, 50, 50, 50]), [0, 5, 5, 9]
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (49, 49), (0, 5), (64, 64)])
def test_no_face_gives_no_rows(shape):
    boxes = detect_faces(np.zeros(shape, np.uint8))
    assert boxes.shape == (0, 4) and boxes.dtype == np.float64


@pytest.mark.parametrize(
    "image", [np.zeros((60, 60, 3), np.uint8), np.zeros((60, 60), np.float32)]
)
def test_colour_and_float_are_refused(image):
    with pytest.raises(ValueError, match="grey uint8"):
        detect_faces(image)


def test_min_size_must_be_positive():
    with pytest.raises(ValueError, match="min_size"):
        detect_faces(np.zeros((60, 60), np.uint8), min_size=0)


def test_missing_cascade_is_named(monkeypatch):
    monkeypatch.setattr(haar, "CASCADE_NAME", "no_such_cascade.xml")
    with pytest.raises(FileNotFoundError, match=r"no_such_cascade\.xml.*Reinstall"):
        detect_faces(np.zeros((60, 60), np.uint8))
