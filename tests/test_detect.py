"""Face boxes from the Haar cascade."""

import dataclasses
import inspect
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxclnf.app import faces_setup
from jaxclnf.app.fit import FitCommand
from jaxclnf.app.info import describe_model
from jaxclnf.app.media import read_image, write_png
from jaxclnf.detect import haar, mtcnn
from jaxclnf.detect.haar import (
    OPENFACE_CALIBRATION,
    boxes_from_haar,
    detect_faces,
    face_squares,
)
from jaxclnf.detect.near import detect_near
from jaxclnf.fitting.model import BoxCalibration, CLNFModel
from jaxclnf.storage import npz
from jaxclnf.storage.npz import read_model, save_model

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


def test_a_calibration_says_where_the_landmarks_are():
    raw = np.array([[100.0, 50.0, 200.0, 200.0]])
    calibration = BoxCalibration(shift=(0.1, 0.25), size=(0.8, 0.75))
    np.testing.assert_allclose(
        boxes_from_haar(raw, calibration), [[120, 100, 160, 150]]
    )
    np.testing.assert_array_equal(
        boxes_from_haar(raw), boxes_from_haar(raw, OPENFACE_CALIBRATION)
    )


def test_detection_uses_the_calibration(monkeypatch):
    found = np.array([[10.0, 20.0, 100.0, 100.0]])
    monkeypatch.setattr(haar, "face_squares", lambda image, *, min_size: found)
    image = np.zeros((200, 200), np.uint8)
    whole = BoxCalibration(shift=(0.0, 0.0), size=(1.0, 1.0))
    np.testing.assert_array_equal(detect_faces(image, calibration=whole), found)
    np.testing.assert_array_equal(detect_faces(image), boxes_from_haar(found))


@pytest.mark.shared
def test_squares_are_those_of_the_reference(golden):
    expected = json.loads((golden / "mtcnn.json").read_text())
    pictures = np.load(golden / "gray_images.npz")
    name, faces = max(expected.items(), key=lambda item: len(item[1]["haar_raw"]))
    squares = face_squares(pictures[name.replace(".", "_")])
    assert squares.dtype == np.float64
    assert sorted(squares.tolist()) == sorted(faces["haar_raw"])


def test_a_model_keeps_its_calibration(example, tmp_path):
    model: CLNFModel = example["model"]
    assert model.box_calibration is None
    calibration = BoxCalibration(shift=(0.0883, 0.2523), size=(1 / 3, 0.8166))
    learnt = dataclasses.replace(model, box_calibration=calibration).prepared((7,))
    save_model(learnt, tmp_path / "a.npz")
    assert read_model(tmp_path / "a.npz").box_calibration == calibration
    assert "boxes       shift (0.0883, 0.2523), size" in describe_model(learnt)
    assert "boxes " not in describe_model(model)


def test_the_command_uses_the_models_calibration(example, tmp_path, monkeypatch):
    calibration = BoxCalibration(shift=(0.1, 0.25), size=(0.8, 0.75))
    model = dataclasses.replace(example["model"], box_calibration=calibration)
    save_model(model, tmp_path / "a.npz")
    write_png(tmp_path / "a.png", np.zeros((60, 60, 3), np.uint8))
    used = []

    def detect(image, *, calibration, min_size):
        used.append(calibration)
        return np.empty((0, 4))

    monkeypatch.setattr(faces_setup, "detect_faces", detect)
    command = FitCommand(
        images=(tmp_path / "a.png",),
        model=str(tmp_path / "a.npz"),
        out=tmp_path / "out",
    )
    assert command.run() == 0 and used == [calibration]


def test_files_from_before_calibrations_can_be_read(example, tmp_path, monkeypatch):
    file = tmp_path / "old.npz"
    with monkeypatch.context() as patch:
        patch.setitem(npz._DERIVED, CLNFModel, ("box_calibration",))
        save_model(example["model"], file)
    with np.load(file) as stored:
        assert b"box_calibration" not in stored["header"].tobytes()
    assert read_model(file).box_calibration is None


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


@pytest.mark.parametrize("check", [face_squares, mtcnn._check])
def test_what_is_no_picture_is_refused(check):
    arguments = {"image": None, "min_size": 50}
    with pytest.raises(TypeError, match=r"image is None; expected an array.*imread"):
        inspect.unwrap(check)(**arguments)


@pytest.mark.parametrize("size", [0, -5, 50.5, np.nan])
def test_min_size_must_be_positive_and_whole(size):
    squares = inspect.unwrap(haar.face_squares)
    with pytest.raises(ValueError, match="min_size must be a positive whole number"):
        squares(np.zeros((60, 60), np.uint8), min_size=size)


def test_no_face_is_larger_than_the_picture():
    assert not len(detect_faces(np.zeros((60, 60), np.uint8), min_size=2**40))


def test_what_is_no_calibration_is_refused(example):
    with pytest.raises(TypeError, match="calibration is a CLNFModel; expected a Box"):
        inspect.unwrap(haar.boxes_from_haar)(np.ones((1, 4)), example["model"])


def test_missing_cascade_is_named(monkeypatch):
    monkeypatch.setattr(haar, "CASCADE_NAME", "no_such_cascade.xml")
    with pytest.raises(FileNotFoundError, match=r"no_such_cascade\.xml.*Reinstall"):
        detect_faces(np.zeros((60, 60), np.uint8))


@pytest.mark.parametrize("content", ["", "<opencv_storage>"])
def test_damaged_cascade_is_named(monkeypatch, tmp_path, content):
    (tmp_path / "damaged.xml").write_text(content)
    monkeypatch.setattr(haar, "CASCADE_NAME", tmp_path / "damaged.xml")
    with pytest.raises(FileNotFoundError, match=r"damaged\.xml.*Reinstall"):
        detect_faces(np.zeros((60, 60), np.uint8))


PHOTOGRAPH = Path(__file__).parents[1] / "docs" / "astronaut.jpg"


@pytest.mark.parametrize("zoom", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("off", [-0.3, 0.0, 0.3])
def test_near_a_face_it_is_found_where_it_is(zoom: float, off: float):
    _, grey = read_image(PHOTOGRAPH)
    grey = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    box = detect_faces(grey)[0]
    side = box[2:].max()
    sizes = []

    def detect(part: np.ndarray) -> np.ndarray:
        sizes.append(max(part.shape))
        return detect_faces(part)

    found = detect_near(detect, box + [off * side, off * side, 0, 0], grey)
    assert (
        np.abs(found - box).max(axis=1).min() < 0.2 * side
    )  # its squares grow by a fifth
    assert sizes[0] <= 2 * min(side, 120) + 1


def test_a_look_near_a_box_is_of_what_is_in_the_picture():
    grey = np.arange(60 * 80, dtype=np.float64).reshape(60, 80)
    seen = []

    def detect(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        np.testing.assert_allclose(other, np.stack([one, one + 1, one], axis=2))
        seen.append(one)
        return np.array([[1.0, 2.0, 30.0, 20.0], [0.0, 0.0, 4.0, 8.0]])

    colour = np.stack([grey, grey + 1, grey], axis=2)
    found = detect_near(detect, np.array([50.0, 40.0, 20.0, 10.0]), grey, colour)
    np.testing.assert_array_equal(seen[0], grey[25:60, 40:80])
    assert found.tolist() == [[41, 27, 30, 20], [40, 25, 4, 8]]
    halved = detect_near(
        detect, np.array([50.0, 40.0, 20.0, 10.0]), grey, colour, side=10.0
    )
    assert seen[1].shape == (18, 20)
    np.testing.assert_allclose(halved[0], [42, 25 + 2 * 35 / 18, 60, 20 * 35 / 18])
    for nowhere in (
        [200.0, 5, 20, 20],
        [np.nan] * 4,
        [5.0, -90, 20, 20],
        [5.0, 5, 0, 0],
    ):
        none = detect_near(detect, np.array(nowhere), grey, colour)
        assert none.shape == (0, 4) and len(seen) == 2
