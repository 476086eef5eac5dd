"""Learning where landmarks are in the squares of the face detector."""

import numpy as np
import pytest

from jaxclnf.detect.haar import boxes_from_haar
from jaxclnf.fitting.model import BoxCalibration
from jaxclnf.learn import boxes as learn_boxes
from jaxclnf.learn.boxes import calibrate_boxes, frames_face, squares_of_faces
from jaxclnf.learn.faces import LabelledFaces

TRUTH = BoxCalibration(shift=(0.08, 0.25), size=(0.83, 0.81))


def squares(number: int, seed: int = 0) -> np.ndarray:
    """Squares of very different sizes and places."""
    rng = np.random.default_rng(seed)
    side = 50 * np.exp(rng.uniform(0, 2, (number, 1)))
    return np.concatenate([rng.uniform(0, 500, (number, 2)), side, side], axis=1)


def boxes_in(raw: np.ndarray, calibration: BoxCalibration = TRUTH) -> np.ndarray:
    corner, side = raw[:, :2], raw[:, 2:]
    return np.concatenate(
        [
            corner + np.array(calibration.shift) * side,
            np.array(calibration.size) * side,
        ],
        axis=1,
    )


def test_exact_boxes_give_the_truth():
    raw = squares(30)
    result = calibrate_boxes(raw, boxes_in(raw))
    assert result.calibration == TRUTH and result.share == 1
    np.testing.assert_allclose(result.spread, 0, atol=1e-9)
    ordered = raw[np.argsort(-raw[:, 2])]
    np.testing.assert_allclose(
        boxes_from_haar(raw, result.calibration), boxes_in(ordered)
    )


def test_noise_and_false_detections_hardly_matter():
    rng = np.random.default_rng(1)
    raw = squares(600)
    boxes = boxes_in(raw)
    side = raw[:, 2:]
    boxes[:, :2] += side * rng.normal(0, 0.03, (600, 2))
    grown = boxes[:, 2:] * np.exp(rng.normal(0, 0.05, (600, 2)))
    boxes = np.concatenate([boxes[:, :2] + (boxes[:, 2:] - grown) / 2, grown], axis=1)
    raw[:60, :2] += 2 * raw[:60, 2:]  # elsewhere
    raw[60:90, 2:] *= 0.3  # a mouth
    raw[90:120, :2] -= raw[90:120, 2:]  # the whole person
    raw[90:120, 2:] *= 3
    raw[120:150] = np.nan  # nothing found
    raw[150:180, 0] += 0.2 * raw[150:180, 2]  # bad, yet not to be told from the others
    calibration, share, spread = calibrate_boxes(raw, boxes)
    assert share == pytest.approx(450 / 600, abs=1e-3)
    np.testing.assert_allclose(calibration.shift, TRUTH.shift, atol=0.006)
    np.testing.assert_allclose(calibration.size, TRUTH.size, atol=0.006)
    np.testing.assert_allclose(spread, [0.033, 0.03, 0.05, 0.05], rtol=0.15)


def test_an_error_of_size_does_not_move_the_centre():
    """The corner's median would: faces are larger where they reach farther left."""
    raw = squares(101)
    boxes = boxes_in(raw)
    factor = np.where(np.arange(101) < 40, 1.3, 1.0)[:, None]
    grown = boxes[:, 2:] * factor
    boxes = np.concatenate([boxes[:, :2] + (boxes[:, 2:] - grown) / 2, grown], axis=1)
    assert calibrate_boxes(raw, boxes).calibration == TRUTH


def test_too_few_faces():
    raw = squares(20)
    boxes = boxes_in(raw)
    raw[4:] = np.nan
    with pytest.raises(ValueError, match="found 4 of 20 faces with a square"):
        calibrate_boxes(raw, boxes)


def test_one_box_for_many_squares():
    raw = squares(8)
    own = boxes_in(raw)[3]
    assert np.flatnonzero(frames_face(raw, own)).tolist() == [3]


def test_the_square_of_the_face_is_taken(monkeypatch: pytest.MonkeyPatch):
    points = np.array([[[20.0, 20], [80, 30], [50, 90]], [[0, 0], [0, 0], [40, 60]]])
    spread = np.zeros((2, 3))
    spread[1, 0] = np.inf
    points[1, 1] = [10, 10]
    face = np.array([12.0, 8.0, 80.0, 80.0])
    found = [
        np.stack([face + [9, 0, 0, 0], face, face + [300, 0, 0, 0], face / 4]),
        np.empty((0, 4)),
    ]
    calls = []

    def squares_in(image: np.ndarray, *, min_size: int) -> np.ndarray:
        calls.append(min_size)
        return found[int(image[0, 0])]

    monkeypatch.setattr(learn_boxes, "face_squares", squares_in)
    faces = LabelledFaces(
        names=("a", "b"),
        images=(np.zeros((9, 9), np.uint8), np.ones((9, 9), np.uint8)),
        landmarks=points,
        spread=spread,
    )
    raw, boxes = squares_of_faces(faces, min_size=33)
    np.testing.assert_array_equal(raw, [face, [np.nan] * 4])
    np.testing.assert_array_equal(boxes, [[20, 20, 60, 70], [10, 10, 30, 50]])
    assert calls == [33, 33]
