"""`jaxclnf track`, as a person uses it."""

import csv
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxclnf.app.cli import main
from jaxclnf.app.errors import MediaError
from jaxclnf.app.faces_setup import FaceSetup
from jaxclnf.app.media import write_png
from jaxclnf.app.overlay import DrawnFace, OverlayWriter, draw_tracked
from jaxclnf.app.streams import COMPILES, decoder_messages
from jaxclnf.app.track import TrackCommand
from jaxclnf.app.video import frames_of, open_video
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.storage.npz import save_model

FAST = ["--window-sizes", "7", "--starts", "1", "--no-parts"]


@pytest.fixture(scope="module")
def model_file(example, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.npz"
    save_model(example["model"], path)
    return str(path)


@pytest.fixture
def out(tmp_path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def finds_it(example, monkeypatch) -> list[int]:
    """A detector that finds the synthetic face where there is one; counts its calls."""
    calls: list[int] = []

    def detect(bgr, grey):
        calls.append(1)
        some = np.asarray(example["box"])[None] if grey.std() > 5 else np.empty((0, 4))
        return some.astype(np.float64)

    monkeypatch.setattr(FaceSetup, "face_detector", lambda self, model: detect)
    return calls


def colour(grey: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


def make_folder(path: Path, frames: list[np.ndarray]) -> Path:
    path.mkdir(parents=True)
    for number, frame in enumerate(frames):
        write_png(path / f"frame_{number:03d}.png", colour(frame))
    return path


def make_video(path: Path, frames: list[np.ndarray], code: str = "MJPG") -> Path:
    height, width = frames[0].shape
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*code), 10.0, (width, height)
    )
    for frame in frames:
        writer.write(colour(frame))
    writer.release()
    return path


def noise(count: int, shape: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape).astype(np.uint8) for _ in range(count)]


def read_table(*parts: str) -> list[dict[str, str]]:
    with open(os.path.join(*parts), newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


# Frames.


def test_frames_of_a_video_file(tmp_path) -> None:
    images = [np.full((40, 60), 20 * i, np.uint8) for i in range(6)]
    video = open_video(make_video(tmp_path / "a.avi", images))
    assert (video.fps, video.num_frames) == (10.0, 6)
    frames = list(frames_of(video))
    assert [f.number for f in frames] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([f.timestamp for f in frames], np.arange(6) / 10)
    for frame, image in zip(frames, images, strict=True):
        assert frame.bgr.shape == (40, 60, 3)
        assert abs(float(frame.grey.mean()) - float(image.mean())) < 3
    faster = list(frames_of(open_video(tmp_path / "a.avi", fps=20.0)))
    assert faster[-1].timestamp == 0.25


def test_a_video_named_by_its_time(tmp_path, monkeypatch) -> None:
    make_video(tmp_path / "a.avi", noise(2)).rename(tmp_path / "01T12:00:00.avi")
    monkeypatch.chdir(tmp_path)
    assert len(list(frames_of(open_video("01T12:00:00.avi")))) == 2


def test_frames_of_a_folder_in_order_of_names(tmp_path) -> None:
    folder = make_folder(tmp_path / "v", [np.full((9, 8), i, np.uint8) for i in (1, 2)])
    (folder / "notes.txt").write_text("no frame")
    (folder / "._frame_000.png").write_bytes(b"of macOS")
    video = open_video(folder)
    assert (video.fps, video.num_frames) == (30.0, 2)
    assert [int(f.grey[0, 0]) for f in frames_of(video)] == [1, 2]
    write_png(folder / "z.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(MediaError, match="frame 3: found 9 x 9 pixels; expected 8 x 9"):
        list(frames_of(open_video(folder)))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("f1", "f10", "f2"), "by name, f10.png before f2.png: expected numbers"),
        (("F3", "f1"), "by name, F3.png before f1.png: expected"),
        (("f01", "f02", "f10"), ""),
        (("a", "b1", "c", "d0"), ""),
        (("take2_1", "take2_2"), ""),
    ],
)
def test_numbers_out_of_order_are_told(tmp_path, capsys, names, said) -> None:
    for name in names:
        write_png(tmp_path / f"{name}.png", np.zeros((2, 2, 3), np.uint8))
    assert open_video(tmp_path).num_frames == len(names)
    assert said in (err := capsys.readouterr().err) and bool(said) == bool(err)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.avi", None, "no such file"),
        ("n" * 300, None, "cannot be read"),
        ("empty.avi", b"", "the file is empty"),
        ("text.avi", b"this is no video" * 99, "not a video of a known format"),
        ("folder", "folder", "found no frame in this folder"),
    ],
)
def test_what_is_no_video(tmp_path, name, content, message) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        open_video(path)
    assert name in str(caught.value)


@pytest.mark.parametrize("share", [0.97, 0.6])
def test_a_video_that_was_cut_off_gives_what_is_there(tmp_path, share) -> None:
    data = make_video(tmp_path / "a.avi", noise(10)).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: int(share * len(data))])
    frames = []
    with pytest.raises(MediaError, match="damaged or cut off; read .* of 10 frames"):
        for frame in frames_of(open_video(cut)):
            frames.append(frame)
    assert 3 < len(frames) <= 10


class _Skipping:
    """A decoder that says that a frame is damaged, and gives the next one instead."""

    def __init__(self, _: str) -> None:
        self.number = 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.number += 1
        if self.number == 6:
            os.write(2, b"[mjpeg @ 0x1] overread 8\n")
        there = self.number < 12
        return there, np.zeros((20, 30, 3), np.uint8) if there else None

    def release(self) -> None: ...


def test_a_damaged_frame_in_the_middle_is_told(tmp_path, monkeypatch) -> None:
    video = open_video(make_video(tmp_path / "a.avi", noise(12)))
    monkeypatch.setattr("jaxclnf.app.video.cv2.VideoCapture", _Skipping)
    frames = []
    with pytest.raises(MediaError) as caught:
        for frame in frames_of(video):
            frames.append(frame)
    assert len(frames) == 11
    assert str(caught.value).endswith(
        "a.avi: damaged or cut off; read 11 of 12 frames, from the first damage on"
        " their numbers may be too low ([mjpeg @ 0x1] overread 8, frame 6)"
    )


def test_what_only_looks_like_a_frame(tmp_path) -> None:
    for name, width in (("a.png", 30), ("c.png", 30), ("d.png", 31)):
        write_png(tmp_path / name, np.zeros((20, width, 3), np.uint8))
    (tmp_path / "b.png").mkdir()
    frames = frames_of(open_video(tmp_path))
    assert [next(frames).number for _ in range(2)] == [1, 2]
    with pytest.raises(MediaError, match=r"d.png, frame 3: found 31 x 20 pixels; exp"):
        next(frames)


# The overlay.


def test_only_a_whole_overlay_gets_the_name(tmp_path) -> None:
    path = tmp_path / "o.avi"
    with OverlayWriter(path, 12.5) as writer:
        for _ in range(3):
            writer.write(np.zeros((33, 47, 3), np.uint8))
    video = open_video(path)
    assert (video.fps, len(list(frames_of(video)))) == (12.5, 3)
    with (
        pytest.raises(RuntimeError) as caught,
        OverlayWriter(tmp_path / "p.avi", 5.0) as writer,
    ):
        writer.write(np.zeros((33, 47, 3), np.uint8))
        raise RuntimeError
    kept = tmp_path / "p.partial.avi"
    assert caught.value.__notes__ == [f"{kept} has the pictures so far"]
    assert len(list(frames_of(open_video(kept)))) == 1
    assert sorted(os.listdir(tmp_path)) == ["o.avi", "p.partial.avi"]
    # Whatever happens to the pictures, the interruption is not lost.
    with (
        pytest.raises(KeyboardInterrupt),
        OverlayWriter(tmp_path / "q.avi", 5.0) as writer,
    ):
        writer.write(np.zeros((33, 47, 3), np.uint8))
        (part,) = tmp_path.glob("*.part.avi")
        part.unlink()
        raise KeyboardInterrupt
    with pytest.raises(MediaError, match="cannot be written"):
        with OverlayWriter(tmp_path / "missing" / "o.avi", 5.0) as writer:
            writer.write(np.zeros((33, 47, 3), np.uint8))


@pytest.mark.parametrize("size", [(48, 64), (120, 160)])
def test_an_overlay_that_does_not_fit_on_the_disk_is_an_error(tmp_path, size) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(MediaError, match="is the disk full"):
            with OverlayWriter(tmp_path / "o.avi", 5.0) as writer, decoder_messages():
                for frame in noise(60, size):
                    writer.write(colour(frame))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_faces_are_drawn_where_they_are() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(20, 80, (68, 2))
    plain = np.zeros((100, 100, 3), np.uint8)
    good = draw_tracked(plain, [DrawnFace(0, points, True)])
    bad = draw_tracked(plain, [DrawnFace(0, points, False)])
    assert good[..., 1].sum() > bad[..., 1].sum() and not plain.any()
    nowhere = [DrawnFace(1, np.full((68, 2), np.nan), True)]
    assert not draw_tracked(plain, nowhere).any()
    far = draw_tracked(plain, [DrawnFace(1, points + 1e9, True)])
    assert far.shape == plain.shape


def test_a_landmark_is_drawn_at_its_pixel() -> None:
    points = np.array([[120.0, 40.0], [150.0, 60.0], [130.0, 75.0]])
    drawn = draw_tracked(
        np.zeros((100, 200, 3), np.uint8), [DrawnFace(0, points, True)]
    )
    for x, y in points.astype(int):
        assert drawn[y, x].tolist() == [245, 245, 245]
    # Else there is only the number, above the face.
    rows, columns = np.nonzero(drawn[38:].max(axis=2))
    assert set(zip(rows + 38, columns, strict=True)) <= {
        (y + down, x + right)
        for x, y in points.astype(int)
        for down in range(-2, 3)
        for right in range(-2, 3)
    }


# The command.


def test_a_face_is_followed(
    example, model_file, out, tmp_path, finds_it, patience, capsys
) -> None:
    frames = [np.roll(example["image"], i, 1) for i in range(4)]
    folder = make_folder(tmp_path / "walk.v1", frames)
    Path(out).mkdir()
    for suffix in ("csv", "avi"):  # of a run that was interrupted
        Path(out, f"walk.v1.partial.{suffix}").touch()
    args = ["track", str(folder), "--model", model_file, "--out", out, *FAST]
    assert main([*args, "--overlay", "--fps", "10"]) == 0
    shown = capsys.readouterr()
    assert "4 frames, 4 with a face" in shown.out
    assert "frame 1 of 4" in shown.err
    assert sorted(os.listdir(out)) == ["walk.v1.avi", "walk.v1.csv"]
    rows = read_table(out, "walk.v1.csv")
    assert [r["frame"] for r in rows] == list("1234")
    assert [r["timestamp"] for r in rows] == ["0.000", "0.100", "0.200", "0.300"]
    assert {r["certified"] for r in rows} == {"1"}
    assert {r["face_id"] for r in rows} == {"0"} and {r["success"] for r in rows} == {
        "1"
    }
    truth = np.asarray(example["landmarks"])
    for step, row in enumerate(rows):
        found = [[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(12)]
        assert np.abs(np.array(found) - truth - [step, 0]).max() < 4.5
    assert len(finds_it) == 1
    # Those of a first fit and those of a face that is followed.
    assert patience == [COMPILES] * 2
    overlay = list(frames_of(open_video(Path(out, "walk.v1.avi"))))
    assert len(overlay) == 4 and overlay[0].grey.shape == example["image"].shape


def test_no_faces_at_all(model_file, out, tmp_path, capsys) -> None:
    folder = make_folder(tmp_path / "black", [np.zeros((120, 90), np.uint8)] * 3)
    args = ["track", str(folder), "--model", model_file, "--out", out, *FAST]
    Path(out).mkdir()
    for suffix in ("csv", "avi"):  # of a run with an overlay, which was interrupted
        Path(out, f"black.partial.{suffix}").touch()
    for more in ([], ["--multi", "--name", "many"]):
        assert main([*args, *more]) == 0
    assert sorted(os.listdir(out)) == ["black.csv", "many.csv"]
    assert capsys.readouterr().out.count("3 frames, 0 with a face") == 2
    for name, face_id in (("black.csv", "0"), ("many.csv", "-1")):
        rows = read_table(out, name)
        assert [(r["frame"], r["face_id"], r["success"]) for r in rows] == [
            (str(i), face_id, "0") for i in (1, 2, 3)
        ]
        assert {r["certified"] for r in rows} == {""}


@pytest.mark.slow
def test_several_faces_have_a_row_each(
    example, model_file, out, tmp_path, finds_it, patience
) -> None:
    frames = [np.zeros_like(example["image"]), *[example["image"]] * 3]
    folder = make_folder(tmp_path / "v", frames)
    args = ["track", str(folder), "--model", model_file, "--out", out, *FAST]
    assert main([*args, "--multi", "--detect-every", "2"]) == 0
    rows = read_table(out, "v.csv")
    assert [(r["frame"], r["face_id"], r["success"]) for r in rows] == [
        ("1", "-1", "0"),
        ("2", "-1", "0"),
        ("3", "0", "1"),
        ("4", "0", "1"),
    ]
    # Two frames without a face, the first with one, and the one after it.
    assert patience == [COMPILES] * 4


def test_bad_videos_do_not_stop_the_others(
    example, model_file, out, tmp_path, finds_it, capsys
) -> None:
    data = make_video(tmp_path / "a.avi", [example["image"]] * 8).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: int(0.6 * len(data))])
    folder = make_folder(tmp_path / "torn", [example["image"]] * 2)
    (folder / "frame_002.png").write_bytes(b"no picture")
    late = make_folder(tmp_path / "late", [example["image"]])
    (late / "frame_000.png").write_bytes(b"no picture")
    names = [str(tmp_path / "no.avi"), str(cut), str(folder), str(late)]
    args = ["--model", model_file, "--out", out, *FAST, "--overlay"]
    assert main(["track", *names, *args]) == 1
    shown = capsys.readouterr()
    assert "no.avi: no such file" in shown.err
    assert "cut.avi: damaged or cut off; read" in shown.err
    assert "frame_002.png: " in shown.err and "frame_000.png: " in shown.err
    assert "torn: 2 frames, 2 with a face" in shown.out
    # Of a video that cannot be used at all there is nothing.
    assert sorted(os.listdir(out)) == ["cut.avi", "cut.csv", "torn.avi", "torn.csv"]
    assert len(read_table(out, "torn.csv")) == 2
    assert 3 <= len(read_table(out, "cut.csv")) < 8


class NoWriter:
    """Of an OpenCV that cannot write videos."""

    fourcc = cv2.VideoWriter.fourcc

    def __init__(self, *_: object) -> None: ...

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return False


@pytest.mark.parametrize("when", ["at once", "at the end"])
def test_an_overlay_that_cannot_be_written_costs_no_row(
    model_file, out, tmp_path, monkeypatch, capsys, when
) -> None:
    folder = make_folder(tmp_path / "v", [np.zeros((120, 90), np.uint8)] * 3)
    path = Path(out, "v.avi")
    if when == "at once":
        monkeypatch.setattr("jaxclnf.app.overlay.cv2.VideoWriter", NoWriter)
        problem = f"{path}: the video cannot be written"
        path.parent.mkdir()
        path.touch()
        end = f"an overlay, {path} is that of an earlier run"
    else:
        (path / "in the way").mkdir(parents=True)
        problem, end = f"{path}: cannot be written (", "an overlay"
    args = ["track", str(folder), "--model", model_file, "--out", out, *FAST]
    assert main([*args, "--overlay"]) == 1
    shown = capsys.readouterr()
    (told,) = [line for line in shown.err.splitlines() if "without an" in line]
    assert told.startswith(f"jaxclnf: {problem}")
    assert told.endswith(f"; the table is written without {end}")
    assert shown.out == f"{folder}: 3 frames, 0 with a face -> {out}/v.csv\n"
    assert [r["frame"] for r in read_table(out, "v.csv")] == list("123")
    assert {*os.listdir(out)} <= {"v.csv", "v.avi"}


def test_the_overlay_of_odd_frames_has_all_of_them(tmp_path) -> None:
    frame = np.full((49, 65, 3), 40, np.uint8)
    frame[-1], frame[:, -1] = 200, 200
    with OverlayWriter(tmp_path / "o.avi", 5.0) as writer:
        writer.write(frame)
    (read,) = frames_of(open_video(tmp_path / "o.avi"))
    assert read.grey.shape == (50, 66)
    assert read.grey[-2:].min() > 150 and read.grey[:, -2:].min() > 150


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_an_end_too_soon_leaves_the_rows_so_far(
    model_file, out, tmp_path, monkeypatch, capsys, error
) -> None:
    calls: list[int] = []

    def detect(bgr, grey):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return np.empty((0, 4))

    monkeypatch.setattr(FaceSetup, "face_detector", lambda self, model: detect)
    # While there is no face the detector looks at every twelfth frame.
    folder = make_folder(tmp_path / "v", [np.zeros((120, 90), np.uint8)] * 14)
    args = ["track", str(folder), "--model", model_file, "--out", out, *FAST]
    notes = [
        f"{Path(out, 'v.partial.csv')} has the first 12 rows",
        f"{Path(out, 'v.partial.avi')} has the pictures so far",
    ]
    if isinstance(error, KeyboardInterrupt):
        assert main([*args, "--overlay"]) == 130
        told = "; ".join(["jaxclnf: interrupted", *notes])
        assert f"{told}\n" in capsys.readouterr().err
    else:
        with pytest.raises(RuntimeError, match="no memory") as caught:
            main([*args, "--overlay"])
        assert caught.value.__notes__ == notes
    assert sorted(os.listdir(out)) == ["v.partial.avi", "v.partial.csv"]
    pictures = list(frames_of(open_video(Path(out, "v.partial.avi"))))
    assert len(pictures) == 12
    rows = read_table(out, "v.partial.csv")
    assert [r["frame"] for r in rows] == [str(i) for i in range(1, 13)]


def test_an_overlay_never_replaces_its_video(
    example, model_file, tmp_path, finds_it
) -> None:
    video = make_video(tmp_path / "a.avi", [example["image"]] * 2)
    before = video.read_bytes()
    args = ["track", str(video), "--model", model_file, "--out", str(tmp_path), *FAST]
    assert main([*args, "--overlay"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["a.avi", "a_2.avi", "a_2.csv"]
    assert video.read_bytes() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "track needs at least one video"),
        (["a.avi", "--fps", "0"], "--fps 0.0: must be a number above 0"),
        (["a.avi", "--fps", "nan"], "--fps nan: must be"),
        (["a.avi", "--detect-every", "0"], "--detect-every 0: must be 1 or more"),
        (["a.avi", "--detect-every", "3"], "--detect-every: has no use without --mul"),
        (["a.avi", "--recheck-every", "-1"], "--recheck-every -1: must be 0 or more"),
        (["a.avi", "b.avi", "--name", "x"], "--name x: is for one video, found 2 of"),
        (["a.avi", "--name", "x/y"], "must be a file's name"),
        (["a.avi", "--sigma", "-1"], "--sigma -1.0: must be"),
        (["-f", "a.avi", "-device", "0"], "live cameras are not read"),
    ],
)
def test_wrong_arguments(args, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["track", *args]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def command(**fields) -> TrackCommand:
    return TrackCommand(videos=(Path("a.avi"),), **fields)


def test_presets() -> None:
    for fields, preset in (
        ({}, TrackOptions()),
        ({"wild": True}, TrackOptions.wild()),
        ({"dialect": "openface"}, TrackOptions.openface()),
        ({"dialect": "openface", "wild": True}, TrackOptions.openface_wild()),
    ):
        assert command(**fields).track_options() == preset or same(
            command(**fields).track_options(), preset
        )
    few = command(starts=1, max_steps=3, template=True).track_options()
    assert few.first.starts == few.follow.starts == 1
    assert few.first.max_steps == few.follow.max_steps == 3
    assert few.use_template


def same(one: TrackOptions, other: TrackOptions) -> bool:
    return vars(one.first) == vars(other.first) and (
        {**vars(one), "first": None, "follow": vars(one.follow)}
        == {**vars(other), "first": None, "follow": vars(other.follow)}
    )


def test_a_model_of_one_scale_can_be_followed(example) -> None:
    import dataclasses

    model = dataclasses.replace(example["model"], experts=example["model"].experts[:1])
    options = command(window_sizes=(7,)).track_options(model)
    assert options.follow.window_sizes == (7,)
