"""The command, as a person uses it."""

import csv
import dataclasses
import errno
import io
import os
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

import jaxclnf
from jaxclnf.app.cli import COMMANDS, main
from jaxclnf.app.faces_setup import FaceSetup
from jaxclnf.app.info import describe_model
from jaxclnf.app.media import read_image, write_png
from jaxclnf.app.names import output_names
from jaxclnf.app.tables import read_boxes
from jaxclnf.fitting.face import unfitted_face
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.options import FitOptions
from jaxclnf.storage.load import load_model
from jaxclnf.storage.npz import save_model
from tests.openface_release import write_models


@pytest.fixture(scope="module")
def model_file(example, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.npz"
    save_model(example["model"], path)
    return str(path)


@pytest.fixture
def photo(example, tmp_path) -> str:
    path = tmp_path / "in" / "face.png"
    path.parent.mkdir()
    write_png(path, cv2.cvtColor(example["image"], cv2.COLOR_GRAY2BGR))
    return str(path)


@pytest.fixture
def out(tmp_path) -> str:
    return str(tmp_path / "out")


def boxes_file(tmp_path, *rows: str, header: str = "image,x,y,width,height") -> str:
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def row(box) -> str:
    return ",".join(map(str, np.asarray(box).tolist()))


def read_table(*parts: str) -> list[dict[str, str]]:
    with open(os.path.join(*parts), newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


WINDOWS = ["--window-sizes", "7"]


def test_a_face_is_fitted(example, model_file, photo, out, tmp_path, capsys):
    boxes = boxes_file(tmp_path, "face.png," + row(example["box"]))
    code = main(
        ["fit", photo, "--model", model_file, "--boxes", boxes, "--out", out, *WINDOWS]
        + ["--precision", "6"]
    )
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    assert shown.out.startswith(f"{photo}: 1 face, 1 converged -> ")
    assert sorted(os.listdir(out)) == ["face.csv", "face.png", "summary.csv"]
    (face,) = read_table(out, "face.csv")
    assert face["status"] == "CONVERGED" and int(face["steps"]) > 0
    assert face["certified"] == "1" and list(face)[-1] == "certified"
    found = [[float(face[f"{k}_{i}"]) for k in "xy"] for i in range(example_size(face))]
    np.testing.assert_allclose(found, example["landmarks"], atol=4.0)
    in_python = fit(
        load_model(model_file),
        example["image"],
        np.asarray(example["box"]),
        options=FitOptions(window_sizes=(7,)),
    )
    np.testing.assert_allclose(found, in_python.landmarks, atol=1e-3)
    (summary,) = read_table(out, "summary.csv")
    assert summary["image"] == photo
    assert (summary["faces"], summary["converged"], summary["problem"]) == (
        "1",
        "1",
        "",
    )


def example_size(face: dict[str, str]) -> int:
    return sum(name.startswith("x_") for name in face)


def test_boxes_that_were_found_can_be_given(
    example, model_file, photo, out, tmp_path, monkeypatch, capsys
):
    box = np.asarray(example["box"], np.float64)[None] + 1 / 3
    monkeypatch.setattr(
        FaceSetup, "face_detector", lambda self, model: lambda bgr, grey: box
    )
    args = ["fit", photo, "--model", model_file, "--no-picture", *WINDOWS]
    assert main([*args, "--out", out]) == 0
    assert capsys.readouterr().out.endswith(f" -> {os.path.join(out, 'face.csv')}\n")
    assert sorted(os.listdir(out)) == ["boxes.csv", "face.csv", "summary.csv"]
    (summary,) = read_table(out, "summary.csv")
    assert (summary["table"], summary["overlay"]) == ("face.csv", "")
    boxes = os.path.join(out, "boxes.csv")
    (found,) = read_boxes(boxes).items()
    assert found[0] == photo
    np.testing.assert_array_equal(found[1], box)

    monkeypatch.delattr(FaceSetup, "face_detector")
    again = str(tmp_path / "again")
    assert main([*args, "--boxes", boxes, "--out", again]) == 0
    assert sorted(os.listdir(again)) == ["face.csv", "summary.csv"]
    assert read_table(again, "face.csv") == read_table(out, "face.csv")


def test_unusable_boxes_become_rows(example, model_file, photo, out, tmp_path, capsys):
    bad = ["9000,10,50,50", "5,5,0,0", "5,5,-20,30", "5,5,60,-1", "nan,5,20,20"]
    bad.append("5,inf,20,20")
    boxes = boxes_file(tmp_path, *bad, row(example["box"]), header="x,y,width,height")
    args = ["fit", photo, "--model", model_file, "--boxes", boxes, "--out", out]
    assert main([*args, *WINDOWS]) == 0
    faces = read_table(out, "face.csv")
    assert [f["status"] for f in faces] == ["BAD_START"] * 6 + ["CONVERGED"]
    assert [f["face"] for f in faces] == list("0123456")
    assert [f["certified"] for f in faces] == list("0000001")
    for face in faces[:6]:
        unknown = ("confidence", "pose_Tz", "x_0", "y_11", "Z_3", "p_scale", "p_tx")
        assert all(float(face[name]) == 0 for name in unknown)
        assert face["log_likelihood"] == "" and face["steps"] == "0"
    assert "6 of 7 failed: BAD_START" in capsys.readouterr().out
    (summary,) = read_table(out, "summary.csv")
    assert (summary["faces"], summary["converged"]) == ("7", "1")


def test_bad_photographs_do_not_stop_the_others(
    model_file, photo, out, tmp_path, capsys
):
    folder = tmp_path / "in"
    data = (folder / "face.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    write_png(folder / "dot.png", np.zeros((1, 1, 3), np.uint8))
    write_png(folder / "black.png", np.zeros((120, 90, 3), np.uint8))
    names = ["missing.jpg", "cut.png", "empty.jpg", "text.jpg", "dot.png"]
    images = [str(folder / name) for name in [*names, "black.png"]]
    assert main(["fit", *images, "--model", model_file, "--out", out]) == 1

    shown = capsys.readouterr()
    problems = ["no such file", "truncated", "empty", "not an image"]
    for line, problem in zip(shown.err.splitlines(), problems, strict=True):
        assert line.startswith("jaxclnf: ") and problem in line
    assert shown.out.count("no face found") == 2
    written = ["black.csv", "black.png", "boxes.csv", "dot.csv", "dot.png"]
    written += ["summary.csv"]
    assert sorted(os.listdir(out)) == written
    assert read_table(out, "dot.csv") == []
    with open(os.path.join(out, "dot.csv")) as file:
        assert file.read().startswith("face, confidence, pose_Tx, ")
    summary = read_table(out, "summary.csv")
    assert [line["image"] for line in summary] == [str(folder / n) for n in names] + [
        images[-1]
    ]
    assert [line["table"] for line in summary] == [""] * 4 + ["dot.csv", "black.csv"]
    for line, problem in zip(summary, [*problems, *["no face found"] * 2], strict=True):
        assert problem in line["problem"]


def test_no_image_of_the_table_was_given(model_file, photo, out, tmp_path, capsys):
    boxes = boxes_file(tmp_path, "other.png,1,2,30,40", "third.png,1,2,30,40")
    args = ["fit", photo, "--model", model_file, "--boxes", boxes, "--out", out]
    assert main(args) == 1
    shown = capsys.readouterr()
    assert "2 other images" in shown.err and "'other.png'" in shown.err
    assert f"jaxclnf: {photo}: no box given in {boxes}\n" in shown.err
    assert "no box given" in shown.out
    assert read_table(out, "face.csv") == []
    (summary,) = read_table(out, "summary.csv")
    assert (summary["faces"], summary["problem"]) == ("0", "no box given")


@pytest.mark.slow
def test_whole_paths_tell_equal_names_apart(
    example, model_file, photo, out, tmp_path, capsys
):
    other = str(tmp_path / "face.png")
    write_png(other, np.zeros((50, 50, 3), np.uint8))
    args = ["fit", photo, other, "--model", model_file, "--out", out, *WINDOWS]
    boxes = boxes_file(tmp_path, f"{photo},{row(example['box'])}", f"{other},1,2,0,0")
    assert main([*args, "--boxes", boxes]) == 0
    assert read_table(out, "face.csv")[0]["status"] == "CONVERGED"
    assert read_table(out, "face_2.csv")[0]["status"] == "BAD_START"
    capsys.readouterr()
    boxes = boxes_file(tmp_path, "face.png,1,2,30,40")
    assert main([*args, "--boxes", boxes]) == 2
    assert "'face.png' could mean" in capsys.readouterr().err


def test_results_never_replace_what_they_come_from(example, model_file, photo, capsys):
    folder = os.path.dirname(photo)
    boxes = os.path.join(folder, "face_2.csv")
    with open(boxes, "w") as file:
        file.write(f"x,y,width,height\n{row(example['box'])}\n")
    with open(photo, "rb") as file:
        before = file.read()
    args = ["fit", photo, "--model", model_file, "--boxes", boxes, "--out", folder]
    assert main([*args, *WINDOWS]) == 0
    with open(photo, "rb") as file:
        assert file.read() == before
    assert sorted(os.listdir(folder)) == [
        "face.png",
        "face_2.csv",
        "face_3.csv",
        "face_3.png",
        "summary.csv",
    ]


def test_names_of_results(tmp_path):
    images = ["a/x.jpg", "b/x.png", "x.png", "X_2.jpg", "summary.jpg", "y.tar.gz"]
    images.append("boxes.png")
    names = output_names([tmp_path / image for image in images], tmp_path / "out")
    assert names == ["x", "x_2", "x_3", "X_2_2", "summary_2", "y.tar", "boxes_2"]
    alone = output_names([tmp_path / "boxes.avi"], tmp_path / "out", tables=())
    assert alone == ["boxes"]


def test_a_picture_that_is_not_written_takes_no_name(tmp_path):
    images = [tmp_path / "x.png", tmp_path / "y.csv"]
    assert output_names(images, tmp_path, images) == ["x_2", "y_2"]
    assert output_names(images, tmp_path, images, pictures=False) == ["x", "y_2"]


def test_no_result_is_named_like_the_unfinished_table_of_another(tmp_path):
    images = ["x.jpg", "x.partial.jpg", "y.partial.jpg", "y.jpg", "boxes.partial.jpg"]
    names = output_names([tmp_path / image for image in images], tmp_path / "out")
    assert names == ["x", "x.partial_2", "y.partial", "y_2", "boxes.partial_2"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ([], "at least one photograph"),
        (["a.jpg", "--window-sizes", "4"], "must be odd"),
        (["a.jpg", "--window-sizes", "999"], "must be odd numbers up to 99"),
        (["a.jpg", "--window-sizes", "0", "0"], "not all 0"),
        (["a.jpg", "--window-sizes", "-3"], "must be odd"),
        (["a.jpg", "--window-sizes", "0", "0", "9"], "0 0 9: skips every scale"),
        (["a.jpg", "--max-steps", "0"], "--max-steps 0: must be a number, 1 to"),
        (["a.jpg", "--sigma", "0"], "--sigma 0.0: must be a number, above 0"),
        (["a.jpg", "--sigma", "nan"], "--sigma nan"),
        (["a.jpg", "--reg-factor", "-1"], "--reg-factor -1.0"),
        (["a.jpg", "--weight-factor", "inf"], "--weight-factor inf"),
        (["a.jpg", "--min-face", "0"], "--min-face 0: must be a number, 1 to 32768"),
        (["a.jpg", "--min-face", "3000000000"], "--min-face 3000000000: must be a"),
        (["a.jpg", "--max-steps", "3000000000"], "--max-steps 3000000000: must be a"),
        (["a.jpg", "--max-steps", "2.5"], "max-steps"),
        (["a.jpg", "--max-passes", "0"], "--max-passes 0: must be a number, 1 to"),
        (["a.jpg", "--finished-starts", "0"], "--finished-starts 0: must be a number"),
        (["a.jpg", "--short-search", "-1"], "--short-search -1: must be a number, 0"),
        (["a.jpg", "--starts", "2"], "starts"),
        (["a.jpg", "--dialect", "none"], "dialect"),
        (["a.jpg", "--detector", "hog"], "detector"),
        (["a.jpg", "--fx", "500"], "--fx and --fy: belong together"),
        (["a.jpg", "--fx", "0", "--fy", "1"], "--fx 0.0: must be a number, above 0"),
        (["a.jpg", "--fx", "1", "--fy", "-1"], "--fy -1.0"),
        (["a.jpg", "--cx", "nan", "--cy", "1"], "--cx nan: must be a number, finite"),
        (["a.jpg", "--cy", "1"], "--cx and --cy: belong together"),
        (["a.jpg", "--precision", "-1"], "--precision -1: must be a number, 0 to 17"),
        (["a.jpg", "--precision", "18"], "--precision 18"),
        (["a.jpg", "--mtcnn", "no_such"], "no_such: found no such file"),
        (["a.jpg", "--mtcnn", "x", "--detector", "haar"], "--mtcnn: has no use"),
        (["a.jpg", "--mtcnn", "x", "--min-face", "11"], "--min-face 11: must be 12"),
        (["a.jpg", "--name", "a/b"], "--name 'a/b': must be a file's name"),
        (["a.jpg", "--name", ""], "--name '': must be a file's name"),
        (["a.jpg", "b.jpg", "--name", "c"], "is for one photograph, found 2"),
        (["-f", "a.jpg", "-aus"], "-aus: facial action units are not estimated"),
        (["-f", "a.jpg", "-no_such"], "-no_such: no option of OpenFace"),
        (["-f", "a.jpg", "-multi_view", "3"], "-multi_view: found '3'"),
        (["-f", "a.jpg", "-sigma", "0"], "--sigma 0.0"),
        (["a.jpg", "--sigma", "wide"], "sigma"),
        (["a.jpg", "--no-such-flag"], "no-such-flag"),
        (["a.jpg", "--boxes", "no_such.csv"], "no_such.csv: no such file"),
        (["a.jpg", "--model", "no_such.npz"], "no_such.npz"),
        (["a.jpg", "--model", "no_such_name"], "no_such_name"),
    ],
)
def test_wrong_arguments_end_in_one_message(
    args, problem, model_file, out, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    if "--model" not in args:
        args = [*args, "--model", model_file]
    assert main(["fit", *args, "--out", out]) == 2
    shown = capsys.readouterr()
    assert problem in shown.err and shown.out == ""
    assert os.listdir(tmp_path) == []


def test_boxes_without_image_are_for_one_photograph(model_file, tmp_path, out, capsys):
    boxes = boxes_file(tmp_path, "1,2,30,40", header="x,y,width,height")
    args = ["fit", "a.jpg", "b.jpg", "--model", model_file, "--boxes", boxes]
    assert main([*args, "--out", out]) == 2
    assert "no column 'image', which 2 photographs need" in capsys.readouterr().err


def test_output_folder_that_cannot_be_made(model_file, photo, capsys):
    below_a_file = os.path.join(photo, "out")
    assert main(["fit", photo, "--model", model_file, "--out", below_a_file]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_results_that_cannot_be_written(model_file, photo, out, capsys):
    os.makedirs(os.path.join(out, "face.png"))
    assert main(["fit", photo, "--model", model_file, "--out", out]) == 1
    assert "face.png: cannot be written" in capsys.readouterr().err
    assert not [name for name in os.listdir(out) if name.endswith(".part")]
    assert "cannot be written" in read_table(out, "summary.csv")[0]["problem"]


def test_a_picture_that_cannot_be_written_costs_no_row(
    example, model_file, photo, out, tmp_path, capsys
):
    os.makedirs(os.path.join(out, "face.png"))
    boxes = boxes_file(tmp_path, "face.png," + row(example["box"]))
    args = ["fit", photo, "--model", model_file, "--boxes", boxes, "--out", out]
    assert main([*args, *WINDOWS]) == 1
    (summary,) = read_table(out, "summary.csv")
    assert "face.png: cannot be written" in summary["problem"]
    assert (summary["faces"], summary["converged"]) == ("1", "1")
    assert (summary["table"], summary["overlay"]) == ("face.csv", "")
    assert len(read_table(out, "face.csv")) == 1
    shown = capsys.readouterr()
    assert shown.out.endswith(f"-> {out}/face.csv\n")


def test_output_to_a_full_disk(model_file, monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["info", model_file]) == 1
    assert capsys.readouterr().err == (
        "jaxclnf: what is said cannot be written (No space left on device); ended\n"
    )


def test_a_photograph_whose_name_is_too_long(model_file, photo, out, capsys):
    long = "n" * 300 + ".png"
    args = ["fit", long, photo, "--model", model_file, "--out", out, "--no-picture"]
    assert main(args) == 1
    assert f"{long}: cannot be read" in capsys.readouterr().err
    assert read_table(out, "face.csv") == []


def test_a_summary_that_cannot_be_written(model_file, photo, out, capsys):
    os.makedirs(os.path.join(out, "summary.csv"))
    assert main(["fit", photo, "--model", model_file, "--out", out]) == 1
    assert "summary.csv: cannot be written" in capsys.readouterr().err
    assert read_table(out, "face.csv") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_an_end_too_soon_leaves_what_is_done(
    model_file, out, tmp_path, monkeypatch, capsys, error
):
    images = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    for image in images:
        write_png(image, np.zeros((60, 70, 3), np.uint8))

    def read(path):
        if path.name == "c.png":
            raise error
        return read_image(path)

    monkeypatch.setattr("jaxclnf.app.fit.read_image", read)
    args = ["fit", *images, "--model", model_file, "--out", out]
    note = f"{os.path.join(out, 'summary.partial.csv')} has the photographs so far"
    if isinstance(error, KeyboardInterrupt):
        assert main(args) == 130
        assert capsys.readouterr().err == f"jaxclnf: interrupted; {note}\n"
    else:
        with pytest.raises(RuntimeError, match="no memory") as caught:
            main(args)
        assert caught.value.__notes__ == [note]
    left = ["a.csv", "a.png", "b.csv", "b.png"]
    left += ["boxes.partial.csv", "summary.partial.csv"]
    assert sorted(os.listdir(out)) == left
    summary = read_table(out, "summary.partial.csv")
    assert [line["image"] for line in summary] == images[:2]


def test_it_is_said_whenever_new_programs_are_compiled(
    model_file, out, tmp_path, monkeypatch, patience
):
    one = unfitted_face(load_model(model_file), num_starts=1, with_parts=False)

    def found(model, image, boxes, options):
        return jax.tree.map(lambda x: np.stack([x] * len(boxes)), one)

    monkeypatch.setattr("jaxclnf.app.fit.fit_photo_faces", found)
    images, rows = [], []
    for side in (90, 80, 600, 1200, 70):
        images.append(str(tmp_path / f"{side}.png"))
        write_png(images[-1], np.zeros((side, side, 3), np.uint8))
        rows.append(f"{side}.png,9,9,{side // 2},{side // 2}")
    # A small face goes where there is a large one anyway: no program of its own.
    rows.append("1200.png,9,9,100,100")
    boxes = boxes_file(tmp_path, *rows)
    args = ["fit", *images, "--model", model_file, "--boxes", boxes, "--no-picture"]
    assert main([*args, "--out", out]) == 0
    assert len(patience) == 3  # canvases of 256, of 1024 and of 2048 pixels


def test_folders_stand_for_their_photographs(model_file, out, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "deeper.png").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "c.bmp"):
        cv2.imwrite(str(folder / name), np.zeros((60, 70, 3), np.uint8))
    (folder / "notes.txt").touch()
    (folder / "._a.JPG").write_bytes(b"of macOS")
    args = ["fit", str(folder), "--model", model_file, "--out", out]
    assert main(args) == 0
    images = [line["image"] for line in read_table(out, "summary.csv")]
    assert images == [str(folder / name) for name in ("a.JPG", "b.png", "c.bmp")]
    assert sorted(os.listdir(out))[:2] == ["a.csv", "a.png"]
    assert read_table(out, "boxes.csv") == []
    capsys.readouterr()
    assert main(["fit", "-fdir", str(folder / "deeper.png"), "-mloc", model_file]) == 2
    assert "found no photograph in this folder" in capsys.readouterr().err


def test_pictures_do_not_go_among_the_photographs(model_file, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    write_png(folder / "a.png", np.zeros((60, 70, 3), np.uint8))
    (tmp_path / "link").symlink_to(folder)
    args = ["fit", str(folder), "--model", model_file, "--out"]
    (folder / "deeper").mkdir()
    for same in (folder, tmp_path / "link", folder / "deeper" / ".."):
        assert main([*args, str(same)]) == 2
        problem = f"--out {same}: found a folder whose photographs are fitted; expected"
        assert problem in capsys.readouterr().err
        assert sorted(os.listdir(folder)) == ["a.png", "deeper"]
    assert main([*args, str(folder), "--no-picture"]) == 0
    assert main([*args, str(folder / "deeper")]) == 0


@pytest.mark.slow
def test_the_command_of_openface_is_understood(
    example, model_file, photo, out, tmp_path, capsys
):
    """Its options, its columns, its numbers."""
    boxes = boxes_file(tmp_path, "face.png," + row(example["box"]))
    args = ["fit", "-f", photo, "-mloc", model_file, "-out_dir", out, "-of", "mine.1"]
    assert (
        main([*args, "-2Dfp", "-n_iter", "3", "--boxes", boxes, "--no-parts", *WINDOWS])
        == 0
    )
    shown = capsys.readouterr()
    assert "1 face, 1 trusted" in shown.out
    (line,) = shown.err.splitlines()
    name = example["model"].info.name
    assert f"dialect openface, model {name} ({model_file}), boxes of {boxes}" in line
    assert sorted(os.listdir(out)) == ["mine.1.csv", "mine.1.png", "summary.csv"]
    with open(os.path.join(out, "mine.1.csv")) as file:
        header, line = file.read().splitlines()
    names = header.split(", ")
    n = example["pdm"].num_landmarks
    assert names[:3] == ["face", "confidence", "x_0"] and names[2 + n] == "y_0"
    assert names[2 + 2 * n :] == ["status", "steps", "log_likelihood"]
    values = line.split(", ")
    assert values[:2] == ["0", "0.000"]  # There is no validator.
    # Two phases of the three steps asked for, none of which was the last.
    assert values[-3:-1] == ["MAX_STEPS", "6"]
    options = dataclasses.replace(
        FitOptions.openface(parts=False), max_steps=3, window_sizes=(7,)
    )
    expected = fit(
        load_model(model_file),
        example["image"],
        np.asarray(example["box"]),
        options=options,
    )
    found = [float(value) for value in values[2 : 2 + 2 * n]]
    np.testing.assert_allclose(found, expected.landmarks.T.ravel(), atol=0.0501)


def test_what_options_of_openface_are_used_with(model_file, out, tmp_path, capsys):
    photo = str(tmp_path / "black.png")
    write_png(photo, np.zeros((60, 70, 3), np.uint8))
    args = ["-mloc", model_file, "-out_dir", out, "--detector", "haar"]
    for command, more in (
        ("fit", ["-f", photo]),
        ("track", ["-fdir", str(tmp_path), "--window-sizes", "7", "--no-parts"]),
    ):
        assert main([command, *args, *more, "--dialect", "converged"]) == 0
        line, *rest = capsys.readouterr().err.splitlines()
        assert line.startswith("jaxclnf: options of OpenFace with a model that is not")
        assert "dialect converged, model " in line
        assert f"({model_file}), detector haar; " in line
        said = ["has no validator", ": frame 1 of 1"] if command == "track" else []
        assert all(a in b for a, b in zip(said, rest, strict=True))
    args = ["fit", photo, "--model", model_file, "--out", out, "--dialect", "openface"]
    assert main(args) == 0
    assert capsys.readouterr().err == ""


def test_results_named_like_an_input_get_a_number(model_file, photo, capsys):
    folder = os.path.dirname(photo)
    args = ["fit", photo, "--model", model_file, "--out", folder, "--name", "face"]
    assert main(args) == 0
    written = ["boxes.csv", "face.png", "face_2.csv", "face_2.png", "summary.csv"]
    assert sorted(os.listdir(folder)) == written


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"eye/main_eye.txt": None}, "no such file"),
        ({"eye/svr.txt": None}, "no such file"),
        ({"tiny.txt": b"PDM pdms/pdm.txt\nPatchesHOG ccnf.txt\n"}, "'PatchesHOG'"),
        ({"tiny.txt": b"PDM pdms/pdm.txt\nPatchesCEN cen.dat\n"}, "'cen.dat'"),
    ],
)
def test_models_that_are_not_whole(files, problem, photo, out, tmp_path, capsys):
    write_models(tmp_path)
    for name, content in files.items():
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
    model = str(tmp_path / "main_tiny.txt")
    assert main(["fit", photo, "--model", model, "--out", out]) == 2
    shown = capsys.readouterr()
    assert problem in shown.err and len(shown.err.splitlines()) == 1
    assert shown.out == "" and not os.path.exists(out)


def test_networks_that_are_nowhere(
    model_file, photo, out, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(tmp_path / "none"))
    args = ["fit", photo, "--model", model_file, "--out", out, "--detector", "mtcnn"]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert "--detector mtcnn: found no MTCNN_detector.txt in" in error
    for place in (os.path.dirname(model_file), str(tmp_path / "none")):
        assert place in error
    assert not os.path.exists(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert COMMANDS[command][1] in text


def test_help_is_quick():
    # What takes long are the imports, so those are what is tested.
    code = (
        "import sys; from jaxclnf.app.cli import main; main(['--help']);"
        "sys.exit(bool({'jax', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxclnf {jaxclnf.__version__}\n"
    args = [sys.executable, "-m", "jaxclnf", "--version"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"jaxclnf {jaxclnf.__version__}\n")


@pytest.mark.parametrize("args", [[], ["no-such-command"], ["--no-such-flag"]])
def test_no_command(args, capsys):
    assert main(args) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_info(example, model_file, capsys):
    assert main(["info", model_file]) == 0
    text = capsys.readouterr().out
    assert text == describe_model(load_model(model_file)) + "\n"
    assert text.splitlines()[1].split() == [
        "landmarks",
        str(example["pdm"].num_landmarks),
    ]


def test_info_without_a_model_file(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.shared
def test_openface_model_is_described(openface_dir, capsys):
    assert main(["info", str(openface_dir / "main_clnf_general.txt")]) == 0
    text = capsys.readouterr().out
    for words in ("0.25 px/mm, 7 views", "CCNF with 7 filters of 11 x 11", "inner, 51"):
        assert words in text
    assert "LICENSE AGREEMENT" in text


@pytest.mark.slow
@pytest.mark.shared
def test_faces_of_a_photograph(shared, openface_dir, out, capsys):
    photo = shared / "faces" / "openface_reference" / "openface_sample4.jpg"
    model = str(openface_dir / "main_clnf_general.txt")
    args = ["fit", str(photo), "--model", model, "--out", out]
    # One scale, for a quick compilation.
    assert main([*args, "--window-sizes", "11", "--no-parts"]) == 0
    (face,) = read_table(out, "openface_sample4.csv")
    assert face["status"] == "CONVERGED"
    left, right = float(face["x_36"]), float(face["x_45"])
    assert 30 < right - left < 200
    bgr, _ = read_image(os.path.join(out, "openface_sample4.png"))
    assert bgr.shape == (600, 800, 3)
