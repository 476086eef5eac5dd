"""Pictures of fits."""

import dataclasses

import numpy as np
import pytest

from jaxclnf.app.drawing import PARTS_68, draw_fits
from jaxclnf.app.tables import Face
from jaxclnf.status import Status


def face(
    status: Status = Status.CONVERGED,
    box: tuple[float, ...] = (100, 100, 200, 200),
    num_landmarks: int = 68,
    success: bool = True,
) -> Face:
    rng = np.random.default_rng(0)
    x, y, width, height = box
    landmarks = np.array([x, y]) + rng.random((num_landmarks, 2)) * [width, height]
    return Face(
        box=np.array(box, np.float64),
        landmarks=landmarks,
        params_global=np.zeros(6),
        status=status,
        converged=status == Status.CONVERGED,
        success=success,
        steps=42,
        log_likelihood=0.0,
        view=0,
    )


def grey(height: int = 600, width: int = 800) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def has_hue(picture: np.ndarray, channel: int) -> bool:
    """Whether some pixel is much stronger in one channel than in the others."""
    others = np.delete(picture.astype(int), channel, axis=2).max(axis=2)
    return bool((picture[..., channel] > others + 80).any())


BLUE, GREEN, RED = 0, 1, 2


def test_every_landmark_belongs_to_one_part():
    covered = [i for part, _ in PARTS_68.values() for i in part]
    assert covered == list(range(68))


def test_the_photograph_is_left_as_it_is():
    photo = grey()
    drawn = draw_fits(photo, [face()])
    assert (photo == 128).all() and drawn.shape == photo.shape
    assert (drawn != 128).any()


def test_colours_tell_the_status():
    converged = draw_fits(grey(), [face()])
    assert has_hue(converged, GREEN) and not has_hue(converged, RED)
    failed = draw_fits(grey(), [face(Status.NONFINITE)])
    assert has_hue(failed, RED) and not has_hue(failed, GREEN)
    assert (draw_fits(grey(), [face(Status.MAX_STEPS)]) != converged).any()
    doubtful = draw_fits(grey(), [face(success=False)])
    assert not has_hue(doubtful, GREEN) and not has_hue(doubtful, RED)


def test_failed_faces_show_no_landmarks():
    bad = face(Status.NONFINITE)
    nan = dataclasses.replace(bad, landmarks=np.full((68, 2), np.nan))
    np.testing.assert_array_equal(draw_fits(grey(), [bad]), draw_fits(grey(), [nan]))


@pytest.mark.parametrize("num_landmarks", [5, 51, 28])
def test_other_numbers_of_landmarks_are_dots(num_landmarks):
    drawn = draw_fits(grey(), [face(num_landmarks=num_landmarks)])
    assert not has_hue(drawn[110:290, 110:290], GREEN)
    assert (drawn[110:290, 110:290] > 200).any()


def test_a_landmark_that_is_nan_hides_only_its_part():
    partly = face()
    partly.landmarks[0] = np.nan
    assert has_hue(draw_fits(grey(), [partly]), GREEN)


@pytest.mark.parametrize(
    "box",
    [
        (np.nan, np.nan, np.nan, np.nan),
        (np.inf, 0, 10, 10),
        (0, 0, np.inf, -np.inf),
        (1e300, -1e300, 1e300, 1e300),
        (9000, 9000, 50, 50),
        (300, 300, -50, 0),
    ],
)
def test_unusable_boxes_still_have_a_label(box):
    with np.errstate(all="ignore"):
        bad = face(Status.BAD_START, box)
    bad = dataclasses.replace(bad, landmarks=np.full((68, 2), np.nan))
    assert has_hue(draw_fits(grey(), [bad]), RED)


def test_labels_do_not_cover_each_other():
    nowhere = face(Status.BAD_START, (np.nan,) * 4)
    one, three = draw_fits(grey(), [nowhere]), draw_fits(grey(), [nowhere] * 3)
    rows_of_one = np.flatnonzero((one != 128).any(axis=(1, 2)))
    rows_of_three = np.flatnonzero((three != 128).any(axis=(1, 2)))
    assert len(rows_of_three) == 3 * len(rows_of_one)


@pytest.mark.parametrize(
    "neighbour",
    [(100, 310, 200, 200), (20, 160, 70, 200), (60, 310, 100, 200)],
    ids=["below", "to the left", "below to the left"],
)
def test_labels_cover_no_other_face(neighbour):
    first, second = face(), face(Status.MAX_STEPS, neighbour, success=False)
    for faces in ([first, second], [second, first]):
        alone, both = draw_fits(grey(), [first]), draw_fits(grey(), faces)
        np.testing.assert_array_equal(both[98:303, 98:303], alone[98:303, 98:303])


def test_many_labels_on_a_small_picture_end():
    draw_fits(grey(40, 40), [face(box=(5, 5, 30, 30))] * 60)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (800, 800)),
        ((1, 900), (1, 900)),
        ((30, 1), (800, 27)),
        ((300, 400), (600, 800)),
        ((2000, 10), (2000, 10)),
    ],
)
def test_small_photographs_are_enlarged(size, expected):
    drawn = draw_fits(grey(*size), [face(box=(0.1, 0.1, 0.5, 0.5))])
    assert drawn.shape == (*expected, 3)


def test_landmarks_are_drawn_where_they_are_after_enlarging():
    tiny = face(box=(20, 20, 60, 60), num_landmarks=1)
    drawn = draw_fits(grey(100, 100), [tiny])
    column, row = np.round((tiny.landmarks[0] + 0.5) * 8 - 0.5).astype(int)
    assert (drawn[row, column] > 230).all()
