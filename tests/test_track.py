"""Following faces: the rules with simulated fits, and whole frames with real ones."""

import dataclasses
import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.app.many_faces import (
    FrameWork,
    ManyFaces,
    ManyOptions,
    doubles,
    new_boxes,
    track_faces,
)
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.same_face import box_of, box_on, overlap
from jaxclnf.fitting.template import cut_template, no_template, template_shift
from jaxclnf.fitting.track import (
    follow_face,
    restart_face,
    track_frame,
    track_step,
)
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.fitting.track_state import (
    Followed,
    TrackerState,
    advance,
    after_follow,
    finish_followed,
    finish_frame,
    needs_detection,
    start_tracking,
    without_detector,
)
from jaxclnf.status import Status
from tests.synthetic import example as make_example

SMALL = FitOptions(window_sizes=(7,), use_parts=False)
OPTIONS = TrackOptions(first=SMALL, follow=SMALL, max_failures=7)
OPENFACE = dataclasses.replace(
    OPTIONS,
    first=dataclasses.replace(SMALL, solver="openface", max_steps=5),
    trust_first=True,
)


@cache
def nobody() -> FitResult:
    found = make_example()
    state = start_tracking(found["model"], OPTIONS)
    return follow_face(found["model"], found["image"], state, OPTIONS)


def simulated(mark: float, success: bool, certainty: float | None = None) -> FitResult:
    """A result that is told by its mark: its scale, landmarks and log-likelihood."""
    result = nobody()
    certainty = (0.9 if success else 0.1) if certainty is None else certainty
    params = dataclasses.replace(
        result.params,
        scale=jnp.asarray(mark),
        rotation=jnp.eye(3),
        translation=jnp.zeros(2),
        params_local=jnp.zeros(4),
    )
    return dataclasses.replace(
        result,
        params=params,
        landmarks=mark + jnp.asarray([[0.0, 0.0], [40.0, 40.0]] * 6),
        log_likelihood=jnp.asarray(mark),
        status=jnp.asarray(int(Status.CONVERGED), jnp.int32),
        certainty=jnp.asarray(certainty),
        success=jnp.asarray(success),
    )


@dataclasses.dataclass
class Script:
    """Runs the machine on a script; notes what it asks for."""

    options: TrackOptions
    state: TrackerState = dataclasses.field(init=False)
    frame: int = 0
    asked: bool = False
    advantage: float = 0.5
    """By how much a fit from a box is likelier than one that follows."""

    def __post_init__(self) -> None:
        self.state = start_tracking(make_example()["model"], self.options)

    def step(self, letters: str) -> tuple[bool, str]:
        """`f` follow: `+` good, `-` bad; detector: `0` none, `+`/`-` its fit.

        Returns the frame's success, and what was called: `f`ollow, `d`etect,
        `r`estart.
        """
        follow, detector = letters
        self.frame += 1
        called = ""

        def from_state(state: TrackerState) -> Followed:
            nonlocal called
            result = nobody()
            if state.initialised:
                called += "f"
                result = simulated(self.frame, follow == "+")
            return without_detector(state, result, self.options)

        def detect(followed: FitResult) -> list[np.ndarray]:
            nonlocal called
            called += "d"
            assert bool(followed.success) == (called == "fd" and follow == "+")
            return [] if detector == "0" else [np.ones(4)]

        def restart(box: np.ndarray) -> FitResult:
            nonlocal called
            called += "r"
            return simulated(self.frame + self.advantage, detector == "+", 0.3)

        self.state, result = advance(
            self.state, self.options, follow=from_state, detect=detect, restart=restart
        )
        self.result = result
        return bool(result.success), called

    @property
    def facts(self) -> tuple[bool, bool, int, float]:
        """initialised, success, failures in a row, whose parameters."""
        s = self.state
        mark = float(s.params.scale)
        return bool(s.initialised), bool(s.success), int(s.failures_in_a_row), mark


def test_a_face_that_is_followed_well_is_compared_with_a_new_fit() -> None:
    run = Script(dataclasses.replace(OPTIONS, recheck_every=3))
    assert run.step("++") == (True, "dr")
    for _ in range(2):
        assert run.step("++") == (True, "f")
    assert run.step("++") == (True, "fdr")
    assert run.facts == (True, True, -1, 4.5)  # The new one is likelier.
    run.advantage = -0.5
    for detector, called in (("+", "fdr"), ("-", "fdr"), ("0", "fd")):
        for _ in range(2):
            assert run.step("++") == (True, "f")
        assert run.step("+" + detector) == (True, called)
        assert run.facts == (True, True, -1, run.frame)  # The followed one is kept.
        assert bool(run.result.success) and float(run.result.params.scale) == run.frame
    # After a failure, whatever is found counts.
    assert run.step("-+") == (True, "fdr")
    assert run.facts == (True, True, -1, run.frame - 0.5)


def test_a_likelier_fit_of_another_face_is_not_taken() -> None:
    """Without this a track of one of two faces jumped to the other one."""
    options = dataclasses.replace(OPTIONS, recheck_every=1)
    first = simulated(1.0, True)
    state = start_tracking(make_example()["model"], options)
    state, _ = finish_frame(state, first, first, options)
    followed = without_detector(state, simulated(2.0, True), options)
    for away, likelihood, taken in (
        (15.0, 9.0, True),
        (25.0, 9.0, False),
        (0, 0, False),
    ):
        other = dataclasses.replace(
            simulated(3.0, True),
            landmarks=followed.result.landmarks + jnp.asarray([[away, 0.0]]),
            log_likelihood=jnp.asarray(likelihood),
        )
        _, result = finish_followed(state, followed, other, options)
        assert bool(result.success)
        assert float(result.params.scale) == (3.0 if taken else 2.0)


def test_boxes_are_tried_in_turn_until_a_fit_is_good() -> None:
    state = start_tracking(make_example()["model"], OPTIONS)
    nothing = without_detector(state, nobody(), OPTIONS)
    for good, tried, kept in ((2, [1, 2], 2.0), (9, [1, 2, 3], 1.0)):
        seen: list[float] = []

        def restart(box: np.ndarray, good: int = good, seen=seen) -> FitResult:
            seen.append(float(box[0]))
            return simulated(float(box[0]), box[0] == good)

        after, result = advance(
            state,
            OPTIONS,
            follow=lambda _: nothing,
            detect=lambda _: [np.full(4, x) for x in (1.0, 2.0, 3.0)],
            restart=restart,
        )
        assert seen == tried and after.initialised
        assert float(result.params.scale) == kept  # without a good one the first
        assert bool(result.success) == (good == 2)


def test_fits_that_end_at_other_windows_are_not_compared() -> None:
    assert TrackOptions().rechecks and TrackOptions.wild().rechecks
    assert not dataclasses.replace(TrackOptions(), recheck_every=0).rechecks
    other = FitOptions(window_sizes=(0, 9, 7, 5), starts=1)
    options = dataclasses.replace(TrackOptions(), follow=other, recheck_every=1)
    assert not options.rechecks
    run = Script(options)
    assert [run.step("++")[1] for _ in range(3)] == ["dr", "f", "f"]


def test_a_good_track_never_asks_the_detector() -> None:
    run = Script(OPTIONS)
    assert run.step("+" + "+") == (True, "dr")
    assert run.facts == (True, True, -1, 1.5)
    for frame in range(2, 6):
        assert run.step("+0") == (True, "f")
        assert run.facts == (True, True, -1, frame)


def test_without_a_face_every_twelfth_frame_is_looked_at() -> None:
    run = Script(OPTIONS)
    asked = []
    for frame in range(30):
        success, called = run.step("00")
        assert not success
        asked += [frame] if called else []
        assert run.facts[:3] == (False, False, frame)
    assert asked == [0, 12, 24]
    assert np.isnan(np.asarray(run.result.landmarks)).all()
    assert run.result.status == Status.BAD_START


@pytest.mark.parametrize("options", [OPTIONS, OPENFACE])
def test_a_first_detection_is_followed_whatever_the_validator_says(options) -> None:
    run = Script(options)
    assert run.step("0-") == (options.trust_first, "dr")
    # The state keeps the validator's word, so that large windows come next.
    assert run.facts == (True, False, -1, 1.5)
    assert run.step("+0") == (True, "f")
    assert run.facts == (True, True, -1, 2.0)


def test_after_failures_every_second_frame_is_looked_at() -> None:
    run = Script(OPTIONS)
    run.step("0+")
    asked = [run.step("-0") for _ in range(5)]
    assert asked == [(False, c) for c in ("fd", "f", "fd", "f", "fd")]
    assert run.facts == (True, False, 4, 6.0)


def test_a_good_fit_from_the_new_box_is_taken() -> None:
    run = Script(OPTIONS)
    run.step("0+")
    assert run.step("-+") == (True, "fdr")
    assert run.facts == (True, True, -1, 2.5)
    assert float(run.result.log_likelihood) == 2.5


@pytest.mark.parametrize(("options", "certainty"), [(OPTIONS, 0.1), (OPENFACE, 0.3)])
def test_a_bad_fit_from_the_new_box_is_dropped(options, certainty) -> None:
    run = Script(options)
    run.step("0+")
    assert run.step("--") == (False, "fdr")
    assert run.facts == (True, False, 0, 2.0)  # parameters of the follow
    assert float(run.state.log_likelihood) == 2.0
    np.testing.assert_array_equal(run.result.landmarks[0], 2.0)
    assert float(run.result.certainty) == pytest.approx(certainty)


def test_too_many_failures_end_the_track_unless_a_fit_was_dropped() -> None:
    run = Script(OPTIONS)  # more than 7 failures in a row, counted from -1
    run.step("0+")
    for _ in range(8):
        run.step("-0")
    assert run.facts[0] is True and run.facts[2] == 7
    # Failure 8 is even: the detector looks, its fit is dropped, the rule is skipped.
    assert run.step("--") == (False, "fdr")
    assert run.facts[0] is True and run.facts[2] == 8
    assert run.step("-0") == (False, "f")
    assert run.facts[0] is False and run.facts[2] == 9
    # From now on as without a face: when one more than the failures is 12.
    calls = [run.step("00")[1] for _ in range(4)]
    assert calls == ["", "", "d", ""]
    for _ in range(9):
        run.step("00")
    assert run.step("00")[1] == ""
    assert run.step("0+") == (True, "dr")
    assert run.facts == (True, True, -1, run.frame + 0.5)


def test_an_unusable_box_counts_as_none() -> None:
    state = start_tracking(make_example()["model"], OPTIONS)
    after, result = finish_frame(state, nobody(), nobody(), OPTIONS)
    assert not after.initialised and int(after.failures_in_a_row) == 0
    assert not result.success


def test_a_start_off_the_image_keeps_the_last_parameters() -> None:
    run = Script(OPTIONS)
    run.step("0+")
    state = after_follow(run.state, nobody())
    assert float(state.params.scale) == 1.5 and not state.success
    assert int(state.failures_in_a_row) == 0


def test_the_rules_are_the_same_for_many_at_once() -> None:
    states, wanted = [], []
    for script in (["0+"], ["00"], ["0+", "-0"], ["0+", "-0", "-0"], ["0+", "+0"]):
        run = Script(OPTIONS)
        for letters in script:
            run.step(letters)
        states.append(run.state)
        wanted.append(bool(needs_detection(run.state, OPTIONS)))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    found = jax.jit(jax.vmap(lambda s: needs_detection(s, OPTIONS)))(stacked)
    np.testing.assert_array_equal(found, wanted)
    assert set(wanted) == {True, False}


# Real fits of the synthetic face.


def shifted(image: np.ndarray, dx: int, dy: int) -> np.ndarray:
    return np.roll(image, (dy, dx), (0, 1))


@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)]
)
def test_a_face_that_moves_is_followed(dtype) -> None:
    face = make_example(dtype)
    state = start_tracking(face["model"], OPTIONS)
    asked = []

    def detect() -> np.ndarray:
        asked.append(1)
        return np.asarray(face["box"], dtype)

    for step in range(4):
        image = shifted(face["image"], 2 * step, -step)
        state, result = track_frame(face["model"], image, state, OPTIONS, detect)
        truth = np.asarray(face["landmarks"]) + np.array([2 * step, -step])
        assert np.abs(np.asarray(result.landmarks) - truth).max() < 4.0
        assert result.landmarks.dtype == state.params.scale.dtype == dtype
    assert len(asked) == 1


@pytest.mark.slow
def test_the_compiled_step_does_the_same() -> None:
    face = make_example()
    model, box = face["model"], face["box"]
    lists = {"host": [], "step": []}
    for name, states in lists.items():
        state = start_tracking(model, OPTIONS)
        for step in range(3):
            image = shifted(face["image"], step, 0)
            if name == "host":
                state, result = track_frame(
                    model, image, state, OPTIONS, lambda: np.asarray(box)
                )
            else:
                state, result = track_step(model, image, state, OPTIONS, box)
            states.append((state, result))
    for one, other in zip(*lists.values(), strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, other
        )
    bad = jnp.full_like(box, jnp.nan)
    state, result = track_step(
        model, face["image"], start_tracking(model, OPTIONS), OPTIONS, bad
    )
    assert not result.success and int(state.failures_in_a_row) == 0


@pytest.mark.slow
def test_many_faces_at_once_and_none_touches_another() -> None:
    face = make_example()
    model, image = face["model"], jnp.asarray(face["image"])
    state = start_tracking(model, OPTIONS)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    boxes = jnp.stack([face["box"], jnp.full(4, jnp.nan)])
    step = jax.vmap(lambda s, b: track_step(model, image, s, OPTIONS, b))
    after, results = step(states, boxes)
    alone = restart_face(model, face["image"], face["box"], OPTIONS)
    assert results.success.tolist() == [True, False]
    assert after.initialised.tolist() == [True, False]
    np.testing.assert_allclose(results.landmarks[0], alone.landmarks, atol=1e-6)


@pytest.mark.slow
def test_large_windows_after_a_failure() -> None:
    face = make_example()
    options = TrackOptions(first=FitOptions(window_sizes=(7, 9)), follow=SMALL)
    state = start_tracking(face["model"], options)
    state = dataclasses.replace(
        state, params=face["params"], initialised=jnp.ones((), bool)
    )
    for success, scales in ((True, [True, False]), (False, [True, True])):
        now = dataclasses.replace(state, success=jnp.asarray(success))
        result = follow_face(face["model"], face["image"], now, options)
        used = np.asarray(result.num_steps).sum(axis=1) > 0
        assert used.tolist() == scales


@pytest.mark.parametrize("with_parts", ["first", "follow"])
def test_parts_may_be_fitted_in_some_frames_alone(with_parts) -> None:
    face = make_example()
    plain = FitOptions(window_sizes=(7,), starts=1, use_parts=False)
    options = dataclasses.replace(
        TrackOptions(first=plain, follow=plain),
        **{with_parts: dataclasses.replace(plain, use_parts=True)},
    )
    state = start_tracking(face["with_part"], options)

    def two_frames(box):
        place = face["with_part"], jnp.asarray(face["image"])
        after, _ = track_step(*place, state, options, box)
        return track_step(*place, after, options, box)[1]

    result = jax.eval_shape(two_frames, face["box"])
    assert list(result.parts) == ["part"]


def test_a_box_is_no_detector() -> None:
    face = make_example()
    state = start_tracking(face["model"], OPTIONS)
    place = face["model"], face["image"], state, OPTIONS
    with pytest.raises(TypeError, match="detect is a .*; expected a function"):
        inspect.unwrap(track_frame)(*place, np.asarray(face["box"]))
    with pytest.raises(TypeError, match="detect_near is a .*; expected a function"):
        inspect.unwrap(track_frame)(*place, lambda: None, detect_near=face["box"])


def test_a_face_that_is_followed_well_is_looked_for_near_it() -> None:
    face = make_example()
    options = dataclasses.replace(OPTIONS, recheck_every=2)
    state = start_tracking(face["model"], options)
    looked: list[str] = []

    def everywhere() -> np.ndarray:
        looked.append("everywhere")
        return np.asarray(face["box"])

    def near(place: np.ndarray) -> np.ndarray:
        looked.append("near")
        assert np.abs(place - np.asarray(face["box"])).max() < 4.0
        return np.stack([place + 500, place])

    seen = []
    for _ in range(3):
        state, _ = track_frame(
            face["model"], face["image"], state, options, everywhere, detect_near=near
        )
        seen.append(list(looked))
    assert seen == [["everywhere"], ["everywhere"], ["everywhere", "near"]]


@pytest.mark.slow
@pytest.mark.parametrize("again", ["first", "follow"])
def test_several_passes_may_be_made_in_some_frames_alone(again) -> None:
    face = make_example()
    place = face["model"], jnp.asarray(face["image"])
    plain = FitOptions(window_sizes=(0, 7), starts=1, use_parts=False)
    options = dataclasses.replace(
        TrackOptions(first=plain, follow=plain),
        **{again: dataclasses.replace(plain, max_passes=2)},
    )
    state = start_tracking(face["model"], options)
    shape = jax.eval_shape(
        lambda box: track_step(*place, state, options, box)[1], face["box"]
    )
    assert shape.pass_params is not None
    first = restart_face(*place, face["box"], options)
    if again == "follow":  # the only pass began where the fit did
        assert first.pass_params is not None
        np.testing.assert_array_equal(
            first.pass_params.params_global, first.start_params.params_global
        )


# The template.


@pytest.mark.parametrize("move", [(0, 0), (25, -14), (-30, 22)])
@pytest.mark.parametrize("zoom", [0.25, 1.2])
def test_the_template_finds_a_shift(move, zoom) -> None:
    face = make_example()
    image, landmarks = jnp.asarray(face["image"]), face["landmarks"]
    scale = jnp.asarray(zoom)  # below 0.3 nothing is made smaller
    cut = jax.jit(cut_template)(image, landmarks, scale)
    moved = jnp.asarray(shifted(face["image"], *move))
    shift = jax.jit(template_shift)(moved, cut, landmarks, scale)
    if zoom < 0.3:  # the face is larger than a template then; its corner counts
        assert int(cut.size.max()) == 96
    # A pixel of the template is up to 4 of the image.
    assert np.abs(np.asarray(shift) - np.array(move)).max() <= max(1, 0.6 * zoom / 0.3)


@pytest.mark.slow
def test_every_result_has_room_for_the_fits_of_a_first_frame() -> None:
    found = make_example()
    first = dataclasses.replace(SMALL, short_search=1)
    options = dataclasses.replace(OPTIONS, first=first)
    state = start_tracking(found["model"], options)
    followed = follow_face(found["model"], found["image"], state, options)
    box = jnp.asarray(found["box"])
    again = restart_face(found["model"], found["image"], box, options)
    assert again.success
    for result in (followed, again):
        assert result.start_log_likelihoods.shape == (first.starts + 1,)


@pytest.mark.slow
def test_without_a_template_nothing_is_shifted() -> None:
    face = make_example()
    image, landmarks = jnp.asarray(face["image"]), face["landmarks"]
    empty = no_template(jnp.zeros(()).dtype, room=True)
    for where in (landmarks, jnp.full((12, 2), jnp.nan), landmarks + 1e4):
        shift = template_shift(image, empty, where, jnp.asarray(1.0))
        np.testing.assert_array_equal(shift, 0)
    flat = jnp.full((240, 260), 9, jnp.uint8)
    cut = cut_template(flat, landmarks, jnp.asarray(1.0))
    shift = template_shift(flat, cut, landmarks, jnp.asarray(1.0))
    assert np.isfinite(np.asarray(shift)).all()


@pytest.mark.slow
@pytest.mark.parametrize("grey", [0.0, 128.0, 200.3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_flat_frame_moves_no_face(grey: float, dtype: type) -> None:
    face = make_example(dtype)
    landmarks, scale = face["landmarks"], jnp.asarray(0.5, dtype)
    cut = jax.jit(cut_template)(jnp.asarray(face["image"]), landmarks, scale)
    flat = jnp.full(face["image"].shape, grey, dtype)
    shift = jax.jit(template_shift)(flat, cut, landmarks, scale)
    np.testing.assert_array_equal(shift, 0)


@pytest.mark.slow
def test_a_template_follows_a_jump_that_windows_do_not() -> None:
    face = make_example()
    errors = []
    for use in (False, True):
        options = dataclasses.replace(OPTIONS, use_template=use)
        state = start_tracking(face["model"], options)
        for move in ((0, 0), (28, -20)):
            image = shifted(face["image"], *move)
            state, result = track_frame(
                face["model"], image, state, options, lambda: np.asarray(face["box"])
            )
        truth = np.asarray(face["landmarks"]) + np.array([28, -20])
        errors.append(np.abs(np.asarray(result.landmarks) - truth).mean())
    assert errors[1] < 3.0 < 10.0 < errors[0]


# Several faces.


def simulated_at(state: TrackerState, *, success: bool) -> FitResult:
    """A fit where a face was."""
    return dataclasses.replace(simulated(1.0, success), landmarks=state.landmarks)


@dataclasses.dataclass
class Scene:
    """Simulated faces: where they are, and whether fits there succeed."""

    boxes: list[np.ndarray]
    certainty: dict[int, float] = dataclasses.field(default_factory=dict)
    options: TrackOptions = OPTIONS
    advantage: float = 0.0
    """By how much a fit from a detector's box is likelier."""
    looked: int = 0
    looked_near: int = 0

    def _fit(self, box: np.ndarray) -> FitResult:
        shares = {i: overlap(b, box) for i, b in enumerate(self.boxes)}
        near = sorted((i for i in shares if shares[i] > 0.2), key=lambda i: -shares[i])
        result = simulated(
            1.0, bool(near), self.certainty.get(near[0]) if near else 0.0
        )
        place = self.boxes[near[0]] if near else box
        low, high = place[:2], place[:2] + place[2:]
        points = np.array([low, high] * 6)
        return dataclasses.replace(result, landmarks=jnp.asarray(points))

    def _follow(self, state: TrackerState) -> Followed:
        return without_detector(state, self._fit(box_of(state.landmarks)), self.options)

    def _restart(self, box: np.ndarray) -> FitResult:
        fitted = self._fit(box)
        likelihood = fitted.log_likelihood + self.advantage
        return dataclasses.replace(fitted, log_likelihood=likelihood)

    def detect(self) -> np.ndarray:
        self.looked += 1
        return np.array(self.boxes).reshape(-1, 4)

    def detect_near(self, place: np.ndarray) -> np.ndarray:
        self.looked_near += 1
        near = [b for b in self.boxes if overlap(b, place) > 0]
        return np.array(near).reshape(-1, 4)

    def work(self) -> FrameWork:
        return FrameWork(
            start=lambda: start_tracking(make_example()["model"], OPTIONS),
            follow=self._follow,
            restart=self._restart,
            detect=self.detect,
            detect_near=self.detect_near,
            remember=lambda state, result: state,
        )


def box(x: float) -> np.ndarray:
    return np.array([x, 10.0, 40.0, 40.0])


def ids(faces: ManyFaces) -> list[int]:
    return [track.face_id for track in faces.tracks]


MANY = ManyOptions(detect_every=3, max_failures=2)


def test_faces_keep_their_numbers_and_new_ones_get_new() -> None:
    scene, faces = Scene([box(0), box(100)]), ManyFaces()
    faces = track_faces(faces, scene.work(), OPTIONS, MANY)
    assert ids(faces) == [0, 1]
    scene.boxes = [box(105), box(5), box(300)]  # moved, in another order, and a third
    seen = []
    for _ in range(3):
        faces = track_faces(faces, scene.work(), OPTIONS, MANY)
        seen.append(ids(faces))
    assert seen == [[0, 1], [0, 1], [0, 1, 2]]  # found when it is time to look
    assert scene.looked == 2
    assert [float(box_of(t.state.landmarks)[0]) for t in faces.tracks] == [5, 105, 300]


def test_a_lost_number_is_not_used_again() -> None:
    scene, faces = Scene([box(0), box(100)]), ManyFaces()
    faces = track_faces(faces, scene.work(), OPTIONS, MANY)
    scene.boxes = [box(100)]
    seen = []
    for _ in range(3):
        faces = track_faces(faces, scene.work(), OPTIONS, MANY)
        seen.append([(t.face_id, bool(t.result.success)) for t in faces.tracks])
    # Two failures are borne, the third ends it.
    assert seen == [[(0, False), (1, True)]] * 2 + [[(1, True)]]
    assert scene.looked == 4  # at once after each loss
    scene.boxes = [box(100), box(0)]
    for _ in range(3):
        faces = track_faces(faces, scene.work(), OPTIONS, MANY)
    assert ids(faces) == [1, 2]


def test_a_lost_face_is_taken_up_again_under_its_number() -> None:
    scene, faces = Scene([box(0)]), ManyFaces()
    faces = track_faces(faces, scene.work(), OPTIONS, MANY)
    scene.boxes = [box(34)]  # too far to follow, near enough to be the same
    faces = track_faces(faces, scene.work(), OPTIONS, MANY)
    assert ids(faces) == [0] and faces.next_id == 1
    assert float(box_of(faces.tracks[0].state.landmarks)[0]) == 34


def test_of_two_tracks_on_one_face_the_less_certain_ends() -> None:
    scene = Scene([box(0), box(100)], {0: 0.8, 1: 0.95})
    faces = track_faces(ManyFaces(), scene.work(), OPTIONS, MANY)
    scene.boxes = [box(10), box(100)]
    first, second = faces.tracks
    moved = dataclasses.replace(second, state=first.state)
    faces = dataclasses.replace(faces, tracks=(first, moved))
    after = track_faces(faces, scene.work(), OPTIONS, MANY)
    assert ids(after) == [0]  # equals: the older one stays
    assert doubles([box(0), box(5)], [(True, 0.8), (True, 0.9)]) == {0}
    assert doubles([box(0), box(5)], [(True, 0.8), (False, 0.9)]) == {1}
    assert doubles([box(0), box(90)], [(True, 0.8), (True, 0.8)]) == set()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_each_of_several_faces_is_compared_with_a_new_fit(advantage: float) -> None:
    options = dataclasses.replace(OPTIONS, recheck_every=2)
    scene = Scene([box(0), box(100)], options=options, advantage=advantage)
    many = ManyOptions(detect_every=100)
    faces = track_faces(ManyFaces(), scene.work(), options, many)
    waited, looked = [], []
    for _ in range(4):
        faces = track_faces(faces, scene.work(), options, many)
        waited.append([int(t.state.frames_followed) for t in faces.tracks])
        looked.append((scene.looked, scene.looked_near))
    # A new fit that is taken counts from 0 again.
    taken = [[1, 1], [0, 0]] * 2
    assert waited == (taken if advantage > 0 else [[i, i] for i in range(1, 5)])
    assert looked == [(1, 0), (1, 2), (1, 2), (1, 4)] and ids(faces) == [0, 1]


def test_a_face_that_is_followed_does_not_jump_to_a_new_one() -> None:
    options = dataclasses.replace(OPTIONS, recheck_every=1)
    scene = Scene([box(0)], options=options, advantage=1.0)
    faces = track_faces(ManyFaces(), scene.work(), options, MANY)
    work = scene.work()._replace(detect_near=lambda place: np.stack([box(25)]))
    scene.boxes = [box(0), box(25)]
    faces = track_faces(faces, work, options, MANY)
    assert float(box_of(faces.tracks[0].state.landmarks)[0]) == 0


def test_two_that_are_lost_keep_their_faces() -> None:
    """The one box is on the second's last place, and touches the first's."""
    scene = Scene([box(0), box(45)])
    faces = track_faces(ManyFaces(), scene.work(), OPTIONS, MANY)
    scene.boxes = []
    faces = track_faces(faces, scene.work(), OPTIONS, MANY)
    scene.boxes = [box(30)]
    work = scene.work()._replace(
        follow=lambda state: without_detector(
            state, simulated_at(state, success=False), OPTIONS
        )
    )
    faces = track_faces(faces, work, OPTIONS, MANY)
    assert [(t.face_id, bool(t.result.success)) for t in faces.tracks] == [
        (0, False),
        (1, True),
    ]


def test_a_corner_of_a_lost_face_is_not_that_face() -> None:
    scene = Scene([box(0)])
    faces = track_faces(ManyFaces(), scene.work(), OPTIONS, MANY)
    scene.boxes = [box(38)]
    faces = track_faces(faces, scene.work(), OPTIONS, MANY)
    assert [(t.face_id, bool(t.result.success)) for t in faces.tracks] == [
        (0, False),
        (1, True),
    ]


def test_there_is_no_limit_on_the_number_of_faces() -> None:
    scene = Scene([box(100.0 * i) for i in range(40)])
    faces = track_faces(ManyFaces(), scene.work(), OPTIONS, MANY)
    assert ids(faces) == list(range(40))


def test_boxes_that_are_none_overlap_nothing() -> None:
    assert box_on(box(0), []) == (None, 0) == box_on(box(0), [box(50)])
    nan = np.full(4, np.nan)
    assert overlap(nan, box(0)) == overlap(box(0), np.zeros(4)) == 0
    assert overlap(box(0), box(0)) == 1
    assert overlap(box(0), np.array([10.0, 20.0, 4.0, 4.0])) == 1
    assert len(new_boxes([box(0), box(100)], [nan])) == 2
