"""`jaxclnf track`: a face, or all faces, followed through videos."""

import dataclasses
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxclnf.app.ahead import made_ahead
from jaxclnf.app.errors import ArgumentError, MediaError
from jaxclnf.app.face_rows import openface_row
from jaxclnf.app.faces_setup import FaceDetector, FaceSetup
from jaxclnf.app.many_faces import ManyFaces, ManyOptions, frame_work, track_faces
from jaxclnf.app.media import make_folder
from jaxclnf.app.names import check_name, output_names
from jaxclnf.app.overlay import OVERLAY_SUFFIX, DrawnFace, OverlayWriter, draw_tracked
from jaxclnf.app.streams import COMPILES, said_if_slow, say, say_error
from jaxclnf.app.tables import remove_partial, write_openface_rows
from jaxclnf.app.video import Frame, Video, frames_of, open_video
from jaxclnf.detect.near import NEAR_SIDE, detect_near
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import OPENFACE_TRACKING_WINDOW_SIZES
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.track import track_frame
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.fitting.track_state import TrackerState, start_tracking
from jaxclnf.openface.csv_table import OpenFaceRow

_PROGRESS_EVERY = 50
_NOBODY = -1
"""`face_id` of the row of a frame without faces, where there may be several."""

_Seen = list[tuple[int, FitResult]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackCommand(FaceSetup):
    """Follows faces through videos.

    For each video the output folder gets NAME.csv, a table in the columns of OpenFace's
    FeatureExtraction with one row per frame, or with --multi one per frame and face. A
    frame without a face, or whose fit is not to be trusted, has success 0. Where a name
    is taken it gets a number: NAME_2. A video that cannot be used is reported; of one
    that is damaged the rows so far are kept; where NAME.avi cannot be written NAME.csv
    still is; each time the others go on and the exit code is 1. If it is interrupted
    the rows so far go to NAME.partial.csv, the pictures of --overlay to
    NAME.partial.avi, and the exit code is 130, or 143 or 129 after SIGTERM or SIGHUP.
    OpenFace's own options (-f, -out_dir, -mloc, ...) are understood too.
    """

    videos: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="VIDEO...", help_behavior_hint=""),
    ]
    """Videos, or folders whose .jpg, .jpeg, .png and .bmp
    files are the frames of one video, by name."""
    multi: bool = False
    """Follow all faces, each with a number of its own,
    instead of one: the largest with the haar detector,
    the most certain with mtcnn. A face ends after five
    frames in a row in which it is not trusted."""
    detect_every: int = ManyOptions.detect_every
    """With --multi: frames from one search for new faces to
    the next."""
    recheck_every: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="INT", help_behavior_hint="(default: 30; openface dialect: 0)"
        ),
    ] = None
    """Frames after which a face that is followed well is
    compared with a new fit from the detector's box, the
    likelier of which is kept; 0: never, nor where the
    last of --window-sizes is not that of followed fits."""
    template: bool = False
    """Begin each frame where the last one's grey values are
    found again, for faces that move fast."""
    fps: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="FLOAT", help_behavior_hint="(default: the video's; else 30)"
        ),
    ] = None
    """Frames per second, for the column timestamp."""
    overlay: bool = False
    """Write NAME.avi too, the video with the landmarks
    drawn in."""
    out: Path = Path("jaxclnf-out")
    """Folder for the results."""
    name: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the video's)"),
    ] = None
    """Name of the results of one video."""

    def track_options(self, model: CLNFModel | None = None) -> TrackOptions:
        """The preset with what was asked for instead.

        Args:
            model: The model, as for `fit_options`.

        Returns:
            The options. `--window-sizes` is for first fits.

        Raises:
            ArgumentError: As `check`.
        """
        first = self.fit_options(model)
        if self.starts is None and self.dialect == "openface":
            first = dataclasses.replace(first, starts=11)
        preset = TrackOptions.wild() if self.wild else TrackOptions()
        windows = preset.follow.window_sizes
        if self.dialect == "openface":
            windows = OPENFACE_TRACKING_WINDOW_SIZES
        if model is not None and not any(windows[: len(model.experts)]):
            windows = first.window_sizes  # the model has one scale only
        recheck_every = self.recheck_every
        if recheck_every is None:
            recheck_every = 0 if self.dialect == "openface" else preset.recheck_every
        return TrackOptions(
            first=first,
            follow=dataclasses.replace(first, starts=1, window_sizes=windows),
            recheck_every=recheck_every,
            use_template=self.template,
            trust_first=self.dialect == "openface",
        )

    def run(self) -> int:
        """Follows faces through all videos.

        Returns:
            The exit code: 1 if a video could not be read to its end or its results not
            written, else 0.

        Raises:
            ArgumentError, MediaError, ModelFileError: Nothing was done, because of the
                arguments, the output folder or the model.
        """
        self.check()
        self._check_own()
        model = self.load()
        options = self.track_options(model)
        self._check_rechecks(options)
        model = self.prepared(model, *options.window_sizes)
        work = _Work(self, model, options, self.face_detector(model))
        out = make_folder(self.out)
        self.say_what_is_used(model)
        if model.validator is None:
            say(
                f"jaxclnf: model {model.info.name} has no validator: a face that is"
                " lost counts as found until its fit fails"
            )
        named = list(self.videos) if self.name is None else [Path(f"{self.name}.csv")]
        used = [*self.videos, *filter(None, (self.model, self.mtcnn))]
        names = _names(named, out, used, self.overlay)
        all_done = True
        for path, name in zip(self.videos, names, strict=True):
            try:
                video = open_video(path, fps=self.fps)
                all_done &= work.track_video(video, out / name)
            except MediaError as error:
                all_done = False
                say_error(error)
        return 0 if all_done else 1

    def _check_rechecks(self, options: TrackOptions) -> None:
        if self.recheck_every and not options.rechecks:
            first, follow = options.window_sizes
            raise ArgumentError(
                f"--recheck-every {self.recheck_every}: has no use where first fits end"
                f" with windows of {first[-1]} and followed ones of {follow[-1]}"
            )

    def _check_own(self) -> None:
        if not self.videos:
            raise ArgumentError("track needs at least one video")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ArgumentError(f"--fps {self.fps}: must be a number above 0")
        if self.detect_every < 1:
            raise ArgumentError(
                f"--detect-every {self.detect_every}: must be 1 or more"
            )
        if self.detect_every != ManyOptions.detect_every and not self.multi:
            raise ArgumentError("--detect-every: has no use without --multi")
        if (self.recheck_every or 0) < 0:
            raise ArgumentError(
                f"--recheck-every {self.recheck_every}: must be 0 or more"
            )
        if self.name is not None:
            check_name(self.name, len(self.videos), "video")


def _names(
    videos: Sequence[Path], out: Path, used: Sequence[str | Path], overlay: bool
) -> list[str]:
    # `output_names` drops a suffix, which the name of a folder has not.
    named = [Path(f"{v.resolve().name}.d") if os.path.isdir(v) else v for v in videos]
    # It knows no overlays; these may not take the place of a video that is read.
    read = [Path(p) for p in used if Path(p).suffix.lower() == OVERLAY_SUFFIX]
    kept = [p.with_suffix(".csv") for p in read if overlay]
    return output_names(named, out, [*used, *kept], tables=())


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is the same for all videos."""

    setup: TrackCommand
    model: CLNFModel
    options: TrackOptions
    detector: FaceDetector

    def track_video(self, video: Video, target: Path) -> bool:
        """Follows faces through one video and writes what was found.

        Tells whether the overlay could be written, if one is wanted.
        """
        broken: list[MediaError] = []
        count = good = 0
        overlay, has_rows = None, False
        path = target.with_name(target.name + OVERLAY_SUFFIX)

        def drop_overlay(error: MediaError) -> None:
            nonlocal overlay
            overlay = None
            old = f", {path} is that of an earlier run" if path.is_file() else ""
            say_error(f"{error}; the table is written without an overlay{old}")

        def rows() -> Iterator[OpenFaceRow]:
            nonlocal count, good
            for frame, seen in _until_damaged(all_seen, broken):
                count = frame.number
                _show_progress(video, count)
                found = list(self._rows(frame, seen))
                good += any(row.success for row in found)
                if overlay is not None:
                    try:
                        overlay.write(_drawn(frame, found))
                    except MediaError as error:
                        drop_overlay(error)
                yield from found

        try:
            with ExitStack() as stack:
                if self.setup.overlay:
                    overlay = stack.enter_context(OverlayWriter(path, video.fps))
                all_seen = stack.enter_context(closing(made_ahead(self._seen(video))))
                columns = self.setup.columns(self.model, "video")
                write_openface_rows(f"{target}.csv", columns, rows())
                has_rows = True
        except MediaError as error:
            if not has_rows:
                raise
            drop_overlay(error)  # whether it is whole is known at its end only
        if not broken:
            remove_partial(f"{target}.csv")
            if overlay is not None or not self.setup.overlay:
                remove_partial(path)
        files = f"{target}.csv" + f", {OVERLAY_SUFFIX}" * (overlay is not None)
        frames = f"{count} frame{'' if count == 1 else 's'}"
        face = "a face" if self.model.validator is None else "a trusted face"
        print(f"{video.path}: {frames}, {good} with {face} -> {files}")
        if broken:
            raise broken[0]
        return (overlay is not None) == self.setup.overlay

    def _seen(self, video: Video) -> Generator[tuple[Frame, _Seen], None, None]:
        """Each frame with the faces in it."""
        with closing(made_ahead(frames_of(video))) as frames:
            if self.setup.multi:
                yield from self._all_faces(frames)
            else:
                yield from self._one_face(frames)

    def _all_faces(self, frames: Iterator[Frame]) -> Iterator[tuple[Frame, _Seen]]:
        many = ManyOptions(detect_every=self.setup.detect_every)
        faces = ManyFaces()
        known: set[int] = set()  # numbers of faces for which programs are there
        for frame in frames:
            before = len(faces.tracks)
            work = frame_work(
                self.model,
                frame.grey,
                self.options,
                partial(self.detector, frame.bgr, frame.grey),
                self._near(frame),
            )
            with nullcontext() if before in known else said_if_slow(COMPILES):
                faces = track_faces(faces, work, self.options, many)
            if faces.tracks:
                known.add(before)
            yield frame, [(t.face_id, t.result) for t in faces.tracks]

    def _one_face(self, frames: Iterator[Frame]) -> Iterator[tuple[Frame, _Seen]]:
        state: TrackerState = start_tracking(self.model, self.options)
        known: set[tuple[bool, bool]] = set()  # kinds of fits whose programs are there
        for frame in frames:
            detect = partial(self.detector, frame.bgr, frame.grey)
            kind = bool(state.initialised), bool(state.success)
            with nullcontext() if kind in known else said_if_slow(COMPILES):
                state, result = track_frame(
                    self.model,
                    frame.grey,
                    state,
                    self.options,
                    detect,
                    detect_near=self._near(frame),
                )
                is_there = bool(np.isfinite(result.params.scale))
            if is_there:
                known.add(kind)
            yield frame, [(0, result)] if is_there else []

    def _near(self, frame: Frame) -> Callable[[np.ndarray], np.ndarray]:
        """Looks for the faces near a box in a frame."""
        side = max(NEAR_SIDE, 2.0 * (self.setup.min_face or 0))
        return lambda place: detect_near(
            self.detector, place, frame.bgr, frame.grey, side=side
        )

    def _rows(self, frame: Frame, seen: _Seen) -> Iterator[OpenFaceRow]:
        """One row per face, and one where there is none."""
        if not seen:
            face_id = _NOBODY if self.setup.multi else 0
            yield OpenFaceRow(
                frame=frame.number, face_id=face_id, timestamp=frame.timestamp
            )
        camera = self.setup.camera(*frame.grey.shape)
        for face_id, result in seen:
            yield openface_row(
                self.model,
                result,
                camera,
                dialect=self.setup.dialect,
                frame=frame.number,
                face_id=face_id,
                timestamp=frame.timestamp,
            )


def _until_damaged(
    all_seen: Iterator[tuple[Frame, _Seen]], broken: list[MediaError]
) -> Iterator[tuple[Frame, _Seen]]:
    """The frames of a video as far as it can be read; `broken` gets what ends it."""
    none_read = True
    try:
        for item in all_seen:
            none_read = False
            yield item
    except MediaError as error:
        if none_read:
            raise
        broken.append(error)


def _drawn(frame: Frame, rows: Sequence[OpenFaceRow]) -> np.ndarray:
    faces = [
        DrawnFace(row.face_id, row.landmarks, row.success)
        for row in rows
        if row.landmarks is not None
    ]
    return draw_tracked(frame.bgr, faces)


def _show_progress(video: Video, number: int) -> None:
    if number == 1 or number % _PROGRESS_EVERY == 0:
        total = f" of {video.num_frames}" if video.num_frames else ""
        say(f"{video.path}: frame {number}{total}")
