"""What a fit is asked to start from: boxes, parameters, and what is neither."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf import (
    FitOptions,
    TrackOptions,
    fit,
    fit_many,
    follow_face,
    start_tracking,
    track_frame,
)
from jaxclnf.experts.area import check_image
from jaxclnf.fitting import many as many_module
from jaxclnf.fitting.given import (
    as_box,
    as_boxes,
    as_model,
    boxes_to_track,
    check_params,
    check_tracking,
)
from jaxclnf.fitting.model import BoxCalibration, CLNFPart, ModelInfo
from jaxclnf.status import Status
from tests import synthetic


def test_boxes_that_are_sequences():
    for boxes in ([1, 2, 30, 40], (1.0, 2, 30, 40), [np.ones(4), [1, 2, 3, 4]]):
        array = as_boxes(boxes, single=True)
        assert array.shape == np.shape(boxes) and array.dtype == np.float64
        traced = jax.jit(lambda *x: as_boxes([*x], single=True))(*array)
        assert np.array_equal(traced, array)
    for boxes in ([1, 2, [3], 4], "abcd", {}, (x for x in range(4))):
        for single in (True, False):
            with pytest.raises(ValueError, match=r"boxes are .*; expected .*\(x, y, w"):
                as_boxes(boxes, single=single)
    with pytest.raises(ValueError, match="boxes are of type <U1; expected numbers"):
        as_boxes(np.asarray(["a"] * 4), single=True)


def test_one_box():
    assert as_box((1, 2, 30, 40)).tolist() == [1, 2, 30, 40]
    for boxes in (np.zeros((1, 4)), np.zeros((0, 4)), []):
        with pytest.raises(
            ValueError, match=r"the box has shape \(., 4\); expected \(4,"
        ):
            as_box(boxes)


@pytest.mark.slow
def test_a_box_beyond_float32_is_a_row():
    face = synthetic.example(np.float32)
    boxes = np.array([[1e300, 0, 10, 10], [0, 0, 1e39, 1e39]])
    place = face["model"], face["image"], boxes
    for fitting in (fit, fit_many):
        found = fitting(*place, options=FitOptions(window_sizes=(7,), starts=1))
        assert found.status.tolist() == [Status.BAD_START] * 2


def test_boxes_of_other_shapes():
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(4,\) or \(faces"):
        as_boxes([1, 2, 3], single=True)
    with pytest.raises(ValueError, match=r"shape \(4,\); expected \(faces, 4\), each"):
        as_boxes([1, 2, 3, 4], single=False)
    for nothing in ([], (), np.zeros(0), np.zeros((0, 4))):
        assert as_boxes(nothing, single=True).shape == (0, 4)


def test_nobody_is_no_error(example: dict):
    model, image = example["model"], example["image"]
    options = FitOptions(window_sizes=(7,), starts=1)
    for boxes in ([], np.zeros((0, 4))):
        for found in (
            fit(model, image, boxes, options=options),
            fit_many(model, image, boxes, options=options),
            fit_many(model, [image, image], boxes, options=options),
            fit_many(model, [image] * 2, boxes, image_index=[], options=options),
            fit_many(model, [], boxes, options=options),
        ):
            assert found.landmarks.shape == (0, 12, 2)
    with pytest.raises(ValueError, match="found no image for 1 boxes"):
        fit_many(model, [], [example["box"]], image_index=[0], options=options)
    with pytest.raises(TypeError, match="images is a generator; .* or a list of such"):
        many_module._prepared(model, (x for x in [image]), [[0] * 4], None, options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", np.ones((1, 1)), r"leading axes \(1, 1\); expected one at most"),
        (
            "scale",
            np.ones(2),
            r"params.rotation has shape \(3, 3\); expected \(2, 3, 3",
        ),
        ("translation", np.ones(3), r"params.translation has shape \(3,\); expected"),
        ("params_local", np.ones(3), r"params.params_local has shape \(3,\); expected"),
        ("rotation", 2 * np.eye(3), r"rotation has \[\[2.0, .*; expected a rotation"),
        ("rotation", np.diag([1.0, 1, -1]), "expected a rotation"),
    ],
)
def test_parameters_that_do_not_fit(
    example: dict, field: str, value: np.ndarray, message: str
):
    params = dataclasses.replace(example["params"], **{field: value})
    with pytest.raises(ValueError, match=message):
        fit(example["model"], example["image"], params=params)


def test_parameters_of_other_kinds(example: dict):
    pdm, params = example["pdm"], example["params"]
    for wrong in (np.ones(6), [params], None):
        with pytest.raises(TypeError, match="params are a .*; expected PDMParams"):
            check_params(pdm, wrong)
    # What is not finite becomes a status; Python's numbers are scales too.
    lost = dataclasses.replace(params, rotation=jnp.full((3, 3), jnp.nan), scale=1.0)
    assert check_params(pdm, lost) == ()
    rows = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    assert check_params(pdm, rows) == (2,)
    leading = jax.jit(lambda p: jnp.zeros(check_params(pdm, p)))(rows)
    assert leading.shape == (2,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"window_sizes": 9},
            "window_sizes is 9; expected whole numbers, one for each",
        ),
        ({"window_sizes": (9.5,)}, "window_sizes is .9.5,.; expected whole numbers"),
        ({"max_steps": 2.5}, "max_steps is 2.5; expected a whole number"),
        ({"starts": 2.0}, "starts is 2.0; expected a whole number"),
        ({"sigma": "a"}, "sigma is 'a'; expected a number above 0"),
    ],
)
def test_options_of_other_kinds(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FitOptions(**changes)


def test_sizes_of_any_sequence_are_the_same_options():
    for sizes in ([11, 9], np.asarray([11, 9])):
        options = FitOptions(window_sizes=sizes, starts=np.int64(1))  # pyright: ignore[reportArgumentType]
        assert options.window_sizes == (11, 9) and type(options.starts) is int
        assert jax.tree.structure(options) == jax.tree.structure(
            FitOptions(window_sizes=(11, 9), starts=1)
        )


def test_sizes_to_prepare(example: dict):
    for size in (8, -3):
        with pytest.raises(
            ValueError, match=f"window size {size}; expected it odd, or"
        ):
            example["model"].prepared((size,))


def test_a_model_of_another_kind(example: dict):
    face = example["image"], example["box"]
    with pytest.raises(TypeError, match="the model is a str; expected a CLNFModel"):
        inspect.unwrap(as_model)("default")
    with (
        jax.enable_x64(False),
        pytest.raises(
            ValueError, match=r"is of float64, but JAX .*x64', True\) before"
        ),
    ):
        fit(example["model"], *face)


def test_what_is_not_computed_with_has_no_programs(example: dict):
    model = example["model"]
    words = ModelInfo(name="x", licence="y", provenance="z")
    boxes = BoxCalibration(shift=(0.0, 0.0), size=(1.0, 1.0))
    part = CLNFPart(
        model=model, main_index=jnp.arange(2), part_index=jnp.arange(2), name="p"
    )
    plain = dataclasses.replace(model, parts=(part,))
    part = dataclasses.replace(part, model=dataclasses.replace(model, info=words))
    told = dataclasses.replace(model, parts=(part,), info=words, box_calibration=boxes)
    assert jax.tree.structure(told) != jax.tree.structure(plain)
    assert jax.tree.structure(as_model(told)) == jax.tree.structure(as_model(plain))


def test_what_looks_at_numbers_is_no_part_of_a_program(example: dict):
    model, image, box = (example[name] for name in ("model", "image", "box"))
    with pytest.raises(TypeError, match="fit_many works on .*; expected fit under jax"):
        jax.jit(lambda x: fit_many(model, x, box[None]))(image)
    options = TrackOptions()
    state = start_tracking(model, options)
    with pytest.raises(TypeError, match="track_frame works .*; expected track_step"):
        jax.jit(lambda s: track_frame(model, image, s, options, lambda: box))(state)


def test_what_a_detector_may_find(example: dict):
    options = TrackOptions()
    state = start_tracking(example["model"], options)
    lost = follow_face(example["model"], example["image"], state, options)
    box = np.array([0.0, 1.0, 40.0, 30.0])
    points = jnp.asarray([box[:2], box[2:]] * 6)
    well = dataclasses.replace(lost, success=jnp.asarray(True), landmarks=points)

    def tried(found, followed, state=state, options=options) -> list:
        boxes = boxes_to_track(found, followed, state, options)
        return [np.asarray(box).tolist() for box in boxes]

    for nothing in (None, np.zeros((0, 4)), []):
        assert tried(nothing, lost) == tried(nothing, well) == []
    for one in (box, [*box], box[None]):
        assert tried(one, lost) == tried(one, well) == [box.tolist()]
    # The first is the largest; a face that is followed well stays the same face.
    far = box + [50, 0, 20, 20]
    assert tried([far, box], lost) == [far.tolist(), box.tolist()]
    assert tried([far, box], well) == [box.tolist()]
    assert tried(far, well) == []
    assert len(tried([far] * 9, lost)) == 3
    # One that was lost is looked for where it was, first or, of several, for a while.
    known = dataclasses.replace(
        state, initialised=jnp.asarray(True), landmarks=points + 30.0
    )
    assert tried([far, box], lost, known) == [far.tolist(), box.tolist()]
    known = dataclasses.replace(known, landmarks=points)
    assert tried([far, box], lost, known) == [box.tolist(), far.tolist()]
    beside = dataclasses.replace(known, not_alone=jnp.asarray(True))
    assert tried([far, box], lost, beside) == [box.tolist()]
    assert tried(far, lost, beside) == []
    late = dataclasses.replace(beside, failures_in_a_row=jnp.asarray(3, jnp.int32))
    assert tried(far, lost, late) == [far.tolist()]
    # OpenFace takes the largest.
    as_there = TrackOptions.openface()
    assert tried([far, box], lost, known, as_there) == [far.tolist()]
    with pytest.raises(ValueError, match=r"boxes have shape \(3,\)"):
        tried(box[:3], lost)


def test_a_track_of_another_kind(example: dict):
    model = example["model"]
    plain = TrackOptions()
    state = start_tracking(model, plain)
    check_tracking(model, state, plain)
    with pytest.raises(
        TypeError, match="options are FitOptions; expected TrackOptions"
    ):
        check_tracking(model, state, FitOptions())
    with pytest.raises(TypeError, match="state is a NoneType; expected a TrackerState"):
        check_tracking(model, None, plain)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    with pytest.raises(ValueError, match=r"leading axes \(2,\); .* jax.vmap of track_"):
        check_tracking(model, two, plain)
    few = dataclasses.replace(state.params, params_local=jnp.zeros(1))
    other = dataclasses.replace(state, params=few)
    with pytest.raises(ValueError, match=r"state.params.params_local has shape \(1,\)"):
        check_tracking(model, other, plain)
    pictures = TrackOptions(use_template=True)
    with pytest.raises(ValueError, match="state has no room for a template"):
        check_tracking(model, state, pictures)
    check_tracking(model, start_tracking(model, pictures), plain)


@pytest.mark.parametrize("kind", ["complex", "str", "object"])
def test_images_of_no_real_numbers(example: dict, kind: str):
    image = example["image"].astype(kind)
    with pytest.raises(TypeError, match="image is of type .*; expected real numbers"):
        check_image(image)


def test_a_mask_is_not_forgotten(example: dict):
    with pytest.raises(TypeError, match="image is a masked array; expected one wit"):
        check_image(np.ma.masked_greater(example["image"], 250))
