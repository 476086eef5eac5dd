"""`fit_many`: faces of any images, cut out, in any order; the numbers of `fit`."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclnf.fitting import many
from jaxclnf.fitting.canvas import canvas_shape, cut, holds, whole_image, window_around
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.many import fit_many
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.status import Status
from tests import synthetic

QUICK = FitOptions(window_sizes=(7,), starts=1)
"""Options whose programs compile in little time."""
CLOSE = 1e-9
"""Pixels; in float64 the place of the window changes rounding only."""


@pytest.fixture(scope="module")
def face() -> dict:
    return synthetic.example()


@pytest.fixture(scope="module")
def album(face: dict) -> tuple[list[np.ndarray], np.ndarray]:
    """The face in four images of different sizes, and its boxes there."""
    image, box = face["image"], np.asarray(face["box"])
    wall = np.full((700, 900), 90, np.uint8)
    images, boxes = [image, image[:230]], [box, box]
    for left, top in ((610, 430), (40, 90)):
        on_wall = wall.copy()
        on_wall[top : top + image.shape[0], left : left + image.shape[1]] = image
        images.append(on_wall)
        boxes.append(box + [left, top, 0, 0])
    return images, np.stack(boxes)


def rows_equal(one: FitResult, other: FitResult) -> bool:
    """Whether two results agree to the last bit, NaN with NaN."""
    same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), one, other)
    return all(jax.tree.leaves(same))


def row(result: FitResult, index) -> FitResult:
    return jax.tree.map(lambda x: x[index], result)


def largest_difference(one: FitResult, other: FitResult) -> float:
    return float(np.abs(np.asarray(one.landmarks) - np.asarray(other.landmarks)).max())


@pytest.fixture(scope="module")
def results(face: dict, album: tuple) -> FitResult:
    return fit_many(face["model"], *album, options=QUICK)


def test_the_numbers_are_those_of_fit(face: dict, album: tuple, results: FitResult):
    images, boxes = album
    for i, (image, box) in enumerate(zip(images, boxes, strict=True)):
        alone = fit(face["model"], image, box, options=QUICK)
        assert largest_difference(alone, row(results, i)) < CLOSE
        assert alone.num_steps.tolist() == results.num_steps[i].tolist()
        moved = np.asarray(alone.params.translation - results.params.translation[i])
        assert np.abs(moved).max() < CLOSE
        assert np.abs(np.asarray(alone.reach - results.reach[i])).max() < CLOSE


@pytest.mark.optimised
@pytest.mark.slow
def test_order_and_neighbours_change_no_bit(
    face: dict, album: tuple, results: FitResult
):
    images, boxes = album
    order = np.array([2, 0, 3, 1, 2])
    again = fit_many(
        face["model"], images, boxes[order], image_index=order, options=QUICK
    )
    assert rows_equal(again, row(results, order))


@pytest.mark.slow
def test_bad_boxes_are_rows(face: dict, album: tuple, results: FitResult):
    images, boxes = album
    bad = np.array([[np.nan] * 4, [0, 0, -3, 5], [5000, 10, 90, 90], [np.inf, 0, 9, 9]])
    mixed = np.stack([x for pair in zip(boxes, bad, strict=True) for x in pair])
    index = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    found = fit_many(face["model"], images, mixed, image_index=index, options=QUICK)
    assert found.status[1::2].tolist() == [Status.BAD_START] * 4
    assert np.isnan(np.asarray(found.landmarks[1::2])).all()
    assert rows_equal(row(found, slice(0, None, 2)), results)


@pytest.mark.slow
def test_few_compilations(face: dict, album: tuple, results: FitResult):
    images, boxes = album
    for count in (2, 4):
        fit_many(face["model"], images[:count], boxes[:count], options=QUICK, chunk=4)
    before = many._fit_chunk._cache_size()  # pyright: ignore
    cropped = [image[:, 2:] for image in images]
    for count in (2, 3, 4):
        shifted = boxes[:count] - [2, 0, 0, 0]
        fit_many(face["model"], cropped[:count], shifted, options=QUICK, chunk=4)
        fit_many(face["model"], images[:count], boxes[:count], options=QUICK, chunk=4)
    assert many._fit_chunk._cache_size() == before  # pyright: ignore


@pytest.mark.slow
def test_one_image(face: dict, results: FitResult):
    boxes = np.stack([np.asarray(face["box"])] * 2)
    both = fit_many(face["model"], face["image"], boxes, options=QUICK)
    assert rows_equal(row(both, 0), row(both, 1))
    assert largest_difference(row(both, 0), row(results, 0)) < CLOSE


def test_no_faces(face: dict):
    none = fit_many(face["model"], face["image"], np.empty((0, 4)), options=QUICK)
    assert none.landmarks.shape == (0, 12, 2)
    assert none.num_steps.shape == (0, 2, 2)


@pytest.mark.slow
def test_a_window_that_is_too_small_grows(
    face: dict, album: tuple, monkeypatch: pytest.MonkeyPatch
):
    images, boxes = album
    # The box is far off, so is the first window; the start from it sees the face.
    box = boxes[2] + np.array([-170, -60, 60, 60])
    monkeypatch.setattr(many, "_MARGIN", -0.3)
    asked = []
    real = many.window_around

    def spy(low, high, shape):
        asked.append(real(low, high, shape))
        return asked[-1]

    monkeypatch.setattr(many, "window_around", spy)
    options = FitOptions(window_sizes=(7,), starts=3)
    found = fit_many(face["model"], images[2], box[None], options=options)
    alone = fit(face["model"], images[2], box, options=options)
    assert len(asked) > 1 and asked[-1].shape != asked[0].shape
    assert largest_difference(alone, row(found, 0)) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks(face: dict, album: tuple, results: FitResult, chunk: int):
    chunked = fit_many(face["model"], *album, options=QUICK, chunk=chunk)
    assert largest_difference(chunked, results) < CLOSE


@pytest.mark.slow
def test_a_face_among_bad_ones(face: dict, album: tuple, results: FitResult):
    """No maps are made for those that failed, which changes nothing for the others."""
    images, boxes = album
    bad = np.full((4, 4), np.nan)
    for place in (0, 3):
        bad[place] = boxes[place]
        found = fit_many(face["model"], images, bad, options=QUICK)
        assert largest_difference(row(found, place), row(results, place)) < CLOSE
        bad[place] = np.nan
    assert found.status.tolist() == [Status.BAD_START] * 3 + [Status.CONVERGED]


@pytest.mark.slow
def test_every_place_is_that_in_the_whole_image(face: dict, album: tuple):
    """That of each pass too, though fits are made in a part of the image."""
    options = dataclasses.replace(QUICK, max_passes=3)
    image, box = album[0][2], album[1][2]
    alone = fit(face["model"], image, box, options=options)
    found = fit_many(face["model"], image, box[None], options=options)
    places = {
        name: (value, getattr(found, name))
        for name, value in vars(alone).items()
        if isinstance(value, PDMParams)
    }
    assert {"params", "start_params", "phase_params", "pass_params"} <= {*places}
    for name, (one, other) in places.items():
        moved = np.abs(np.asarray(one.translation - other.translation[0]))
        assert moved.max() < CLOSE, name


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            FitOptions(window_sizes=(7, 7), starts=3, finished_starts=2),
            marks=pytest.mark.slow,
        ),
        pytest.param(FitOptions(max_passes=3, starts=1), marks=pytest.mark.slow),
        pytest.param(FitOptions.openface(starts=3), marks=pytest.mark.slow),
    ],
    ids=["starts", "passes", "openface"],
)
def test_nothing_beyond_the_reach_matters(face: dict, options: FitOptions):
    model = face["with_part"]
    large = np.pad(face["image"], 120, constant_values=77)
    box = np.asarray(face["box"]) + [120, 120, 0, 0]
    clean = fit(model, large, box, options=options)
    left, top, right, bottom = np.asarray(clean.reach)
    rows, columns = np.indices(large.shape)
    beyond = (rows < top) | (rows > bottom) | (columns < left) | (columns > right)
    assert 0.2 < beyond.mean() < 0.9
    noise = np.random.default_rng(0).integers(0, 256, large.shape, np.uint8)
    spoilt = fit(model, np.where(beyond, noise, large), box, options=options)
    assert rows_equal(clean, spoilt)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"images": np.zeros((2, 2, 3), np.uint8)}, "image 0 has shape (2, 2, 3)"),
        ({"images": np.zeros((3, 9, 9))}, "found 2 boxes for 3 images"),
        ({"images": [np.zeros((2, 0))] * 2}, "image 0 has shape (2, 0)"),
        ({"boxes": np.zeros(4)}, "boxes have shape (4,)"),
        ({"images": [np.zeros((9, 9))] * 3}, "found 2 boxes for 3 images"),
        ({"image_index": [0]}, "expected one whole number for each of 2 boxes"),
        ({"image_index": np.zeros(2)}, "type float64"),
        ({"image_index": [0, 1]}, "image_index[1] is 1; expected 0 to 0"),
        ({"image_index": [-1, 0]}, "image_index[0] is -1"),
        ({"chunk": 0}, "chunk is 0"),
        (
            {"options": FitOptions(window_sizes=())},
            "leave none of the model's 2 scales",
        ),
    ],
)
def test_wrong_arguments(face: dict, change: dict, problem: str):
    arguments = {"images": face["image"], "boxes": np.ones((2, 4))} | change
    with pytest.raises(ValueError) as caught:
        fit_many(face["model"], **arguments)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"chunk": 1.5}, "chunk is 1.5; expected a whole number"),
        ({"image_index": [[0], [0, 1]]}, "image_index is .*; expected one whole"),
    ],
)
def test_what_is_no_whole_number(face: dict, change: dict, problem: str):
    place = face["model"], face["image"], np.ones((2, 4))
    with pytest.raises(ValueError, match=problem):
        inspect.unwrap(fit_many)(*place, **change)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (None, "images is None; expected an array"),
        ([np.zeros((9, 9)), None], "image 1 is None; expected an array"),
    ],
)
def test_images_that_are_no_arrays(face: dict, images, problem: str):
    boxes = np.ones((2, 4))
    with pytest.raises(TypeError, match=problem):
        many._prepared(face["model"], images, boxes, None, QUICK)


def test_a_stack_is_several_images(face: dict):
    stack = np.stack([face["image"], face["image"][::-1]])
    boxes = np.ones((2, 4)).tolist()
    of_stack = many._prepared(face["model"], stack, boxes, None, QUICK)
    assert np.array_equal(of_stack.images, stack)
    assert of_stack.image_index.tolist() == [0, 1]


positions = st.floats(-3000, 9000)


@given(
    low=st.tuples(positions, positions),
    size=st.tuples(st.floats(0, 4000), st.floats(0, 4000)),
    shape=st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
)
def test_a_window_around_a_part_holds_it(low: tuple, size: tuple, shape: tuple):
    begin, end = np.array(low), np.array(low) + size
    window = window_around(begin, end, shape)
    assert holds(window, np.concatenate([begin, end]), shape)
    assert window.shape == window.shape[::-1] or window == whole_image(shape)
    assert window.shape[0] * window.shape[1] <= np.prod(canvas_shape(shape))


@given(
    corner=st.tuples(st.integers(0, 50), st.integers(0, 60)),
    data=st.data(),
)
def test_a_cut_is_a_part_of_the_image(corner: tuple, data: st.DataObject):
    image = np.arange(1, 51 * 61 + 1, dtype=np.float32).reshape(51, 61)
    shape = data.draw(st.tuples(st.integers(1, 80), st.integers(1, 80)))
    canvas = np.zeros((81, 81), np.float32)
    height, width = cut(image, many.Window(corner[1], corner[0], shape), canvas)
    assert (
        canvas[:height, :width]
        == image[corner[0] :, corner[1] :][: shape[0], : shape[1]]
    ).all()
    assert (canvas > 0).sum() == height * width
