"""`jaxclnf models`: what there is, checked, agreed to, converted."""

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxclnf.app.cli import main
from jaxclnf.app.openface_licence import acceptances_file
from jaxclnf.experts.types import SVRExperts
from jaxclnf.openface import release
from jaxclnf.openface.licence import IN_SHORT, find_licence
from jaxclnf.storage.load import load_model
from jaxclnf.storage.openface_cache import cache_folder, find_conversion
from tests.openface_release import (
    FILES,
    LICENCE,
    PUBLISHED,
    isolate,
    write_list,
    write_models,
)


class Terminal(io.StringIO):
    """Input of a person who types this."""

    def isatty(self) -> bool:
        """It is a terminal."""
        return True


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders; there is no terminal."""
    isolate(tmp_path / "home", monkeypatch)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    return tmp_path / "home"


@pytest.fixture
def openface(tmp_path: Path) -> Path:
    """A copy of OpenFace: its models, and the licence beside them."""
    write_models(tmp_path / "openface" / "model")
    (tmp_path / "openface" / "OpenFace-license.txt").write_text(LICENCE)
    return tmp_path / "openface"


@pytest.fixture
def shared_cache(home: Path) -> Path:
    """The same where PyCLNF keeps it."""
    cache = home / "data" / "OpenFaceModels" / "9.9"
    write_models(cache / "originals/lib/local/LandmarkDetector/model")
    return cache


def run(
    capsys: pytest.CaptureFixture[str], *args: object, code: int = 0
) -> tuple[str, str]:
    """Output and errors of `jaxclnf models`."""
    assert main(["models", *map(str, args)]) == code
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.out, shown.err


def rows(out: str) -> list[list[str]]:
    """The rows of the overview: title and text."""
    return [line[2:].split(maxsplit=1) for line in out.splitlines() if line[:1] == " "]


# The overview.


def test_nothing_there(home: Path, capsys):
    out, err = run(capsys)
    assert err == ""
    place = home / "data" / "OpenFaceModels" / "9.9"
    assert ["files", f"none in {place}"] in rows(out)
    assert ["cache", str(cache_folder())] in rows(out)
    assert [row[0] for row in rows(out)].count("default") == 1
    for name in ("tiny", "svr", "apart"):
        assert [name, "not converted"] in rows(out)


def test_models_of_a_folder(openface: Path, capsys):
    out, err = run(capsys, "--from", openface)
    assert err == ""
    assert ["files", str(openface / "model")] in rows(out)
    assert ["licence", f"OpenFace-license.txt in {openface}"] in rows(out)
    assert "not accepted yet" in out
    size = sum(map(len, [*FILES.values()][:8])) / 1e6
    assert ["tiny", f"complete, 8 files, {size:.1f} MB"] in rows(out)
    (apart,) = [text for title, text in rows(out)[:-3] if title == "apart"]
    assert apart.startswith("1 of 4 files missing, first apart.dat, which OpenFace pub")


def test_models_of_the_shared_cache(shared_cache: Path, capsys):
    out, _ = run(capsys)
    found = shared_cache / "originals/lib/local/LandmarkDetector/model"
    assert ["files", str(found)] in rows(out)
    assert "tiny            complete" in out


def test_the_environment_names_the_cache(
    shared_cache: Path, home: Path, openface: Path, monkeypatch, capsys
):
    (home / "other").mkdir()
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(home / "other"))
    # The user's own folder is not looked at then.
    assert f"none in {home / 'other' / '9.9'}" in run(capsys)[0]
    (openface / "model").rename(home / "other" / "9.9")
    assert ["files", str(home / "other" / "9.9")] in rows(run(capsys)[0])


def test_damage_is_shown_once_and_is_no_success(openface: Path, capsys):
    file = openface / "model" / "pdms" / "pdm.txt"
    file.write_bytes(b"short")
    out, _ = run(capsys, "--from", openface, code=1)
    assert "tiny            1 of 8 files wrong" in out
    problem = f"{file}: found 5 bytes, expected {len(FILES['pdms/pdm.txt'])}"
    assert out.count(problem) == 1


def test_a_missing_part_is_no_success(openface: Path, capsys):
    (openface / "model" / "eye" / "main_eye.txt").unlink()
    out, _ = run(capsys, "--from", openface, code=1)
    assert "tiny            1 of 8 files missing, first eye/main_eye.txt\n" in out
    assert "svr             complete" in out


def test_a_model_that_is_not_there_is_no_damage(openface: Path, capsys):
    for lost in ("main_tiny.txt", "ccnf.txt"):
        (openface / "model" / lost).unlink()
    out, _ = run(capsys, "--from", openface)
    assert "tiny            2 of 8 files missing, first main_tiny.txt\n" in out


@pytest.mark.parametrize("args", [[], ["--convert", "tiny"]])
def test_folders_without_models(home: Path, args: list[str], capsys):
    (home / "file").touch()
    for place, problem in [
        (home / "absent", "there is no such folder"),
        (home / "file", "there is no such folder"),
        (home, "found no models of OpenFace 9.9, expected its folder 'model'"),
    ]:
        _, err = run(capsys, "--from", place, *args, code=2)
        assert str(place) in err and problem in err and err.count("\n") == 1
    _, err = run(capsys, "--convert", "tiny", code=2)
    assert str(home / "data" / "OpenFaceModels" / "9.9") in err


# Converting.


def test_convert_and_use_by_name(openface: Path, capsys):
    args = ("--from", openface, "--convert", "tiny", "--accept-license")
    out, err = run(capsys, *args)
    file = find_conversion("tiny")
    assert err == "" and out.splitlines() == [
        f"licence accepted by --accept-license: OpenFace-license.txt in {openface}",
        f"tiny: converted -> {file}",
    ]
    assert load_model("tiny").info.licence == LICENCE.strip()
    assert ["tiny", "converted"] in rows(run(capsys)[0])
    assert "accepted on 20" in run(capsys, "--from", openface)[0]
    assert main(["info", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "name        tiny\n" in shown and "For research only" in shown


@pytest.mark.slow
def test_convert_and_fit(example, openface: Path, tmp_path: Path, capsys):
    run(capsys, "--from", openface, "--convert", "tiny", "--accept-license")
    photo, boxes = tmp_path / "face.png", tmp_path / "boxes.csv"
    cv2.imwrite(str(photo), example["image"])
    boxes.write_text("x,y,width,height\n65,56,136,130\n")
    fit = ["fit", photo, "--model", "tiny", "--boxes", boxes, "--out", tmp_path / "out"]
    assert main([*map(str, fit), "--window-sizes", "3"]) == 0
    assert (tmp_path / "out" / "face.csv").is_file()


def test_the_second_time_nothing_is_done(openface: Path, capsys, monkeypatch):
    _, err = run(capsys, "--from", openface, "--convert", "all", "nope", code=2)
    assert "--convert: found 'nope', expected 'all'" in err
    args = ("--from", openface, "--convert", "tiny", "tiny")
    run(capsys, *args, "--accept-license")
    file = find_conversion("tiny")
    assert file is not None
    what = lambda: (file.stat().st_ino, file.stat().st_mtime_ns)
    before = what()
    out, _ = run(capsys, *args)
    assert out == f"tiny: already converted -> {file}\n"
    assert what() == before
    # Damaged in the cache, it is made again; the licence is not asked for twice.
    file.write_bytes(b"PK")
    out, _ = run(capsys, *args)
    assert out == f"tiny: converted -> {file}\n"
    assert load_model("tiny").info.name == "tiny"


def test_a_stale_conversion_is_redone(openface: Path, capsys, monkeypatch):
    args = ("--from", openface, "--convert", "tiny", "--accept-license")
    run(capsys, *args)
    old = find_conversion("tiny")
    # A later release with another file.
    monkeypatch.setitem(FILES, "tris.txt", FILES["tris.txt"] + b"\n")
    write_list(release._LISTS[0])
    write_models(openface / "model")
    assert ["tiny", "out of date: convert it again"] in rows(run(capsys)[0])
    run(capsys, *args)
    new = find_conversion("tiny")
    assert new != old and [*cache_folder().iterdir()] == [new]


def test_convert_all_leaves_out_what_is_not_there(openface: Path, capsys):
    args = ("--from", openface, "--convert", "all", "--accept-license")
    out, err = run(capsys, *args)
    assert err == ""
    assert out.startswith("apart: left out, 1 of 4 files missing, first apart.dat")
    assert find_conversion("tiny") and find_conversion("svr")
    assert find_conversion("apart") is None
    (openface / "model" / "apart.dat").write_bytes(FILES["apart.dat"])
    out, _ = run(capsys, *args)
    assert out.count("already converted") == 2 and "apart: converted -> " in out


def test_good_models_are_converted_beside_bad_ones(openface: Path, capsys):
    (openface / "model" / "ccnf.txt").write_bytes(FILES["ccnf.txt"][:-3])
    args = ("--from", openface, "--accept-license", "--convert")
    out, err = run(capsys, *args, "all", code=1)
    assert err.startswith("jaxclnf: tiny: ") and "ccnf.txt: found" in err
    assert err.count("\n") == 1 and "svr: converted" in out
    _, err = run(capsys, *args, "apart", "svr", code=1)
    assert "apart: " in err and "first apart.dat" in err
    _, err = run(capsys, *args, "tiny", code=2)
    assert "found no complete model to convert" in err and "ccnf.txt: found" in err
    assert find_conversion("tiny") is None


def test_names_that_are_no_models(openface: Path, capsys):
    for names in (["tiny", "huge"], []):
        _, err = run(capsys, "--from", openface, "--convert", *names, code=2)
        assert "expected 'all', or some of tiny, svr, apart" in err
        assert ("'huge'" if names else "no name") in err
    _, err = run(capsys, "--convert", "huge", code=2)  # with no files to be found
    assert "found 'huge', expected 'all', or some of tiny" in err
    _, err = run(capsys, "--from", openface, "--accept-license", code=2)
    assert "only together with --convert" in err


def test_a_cache_that_cannot_be_written(openface: Path, home: Path, capsys):
    (home / "cache").write_text("in the way")
    args = ("--from", openface, "--convert", "tiny", "svr", "--accept-license")
    _, err = run(capsys, *args, code=2)
    for name, line in zip(("tiny", "svr"), err.splitlines(), strict=True):
        assert line.startswith(f"jaxclnf: {name}: {home / 'cache'}")
        assert "JAXCLNF_CACHE_DIR" in line
    assert "not converted" in run(capsys)[0]


def test_experts_that_cannot_be_read(openface: Path, capsys, monkeypatch):
    """A published file that the readers refuse stops no other model."""
    monkeypatch.setitem(FILES, "tiny.txt", b"PDM pdms/pdm.txt\n")
    write_list(release._LISTS[0])
    write_models(openface / "model")
    args = ("--from", openface, "--convert", "all", "--accept-license")
    out, err = run(capsys, *args, code=1)
    assert "jaxclnf: tiny: " in err and "found no experts" in err
    assert "svr: converted" in out


# The licence.


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " Yes \n"])
def test_the_licence_is_shown_and_asked_for_once(
    openface: Path, capsys, monkeypatch, answer: str
):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    out, _ = run(capsys, "--from", openface, "--convert", "tiny")
    assert out.startswith(LICENCE) and "[y/N]" in out
    assert find_conversion("tiny") is not None
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    out, _ = run(capsys, "--from", openface, "--convert", "svr")
    assert "research" not in out and "svr: converted" in out


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yesterday\n"])
def test_anything_else_is_no(openface: Path, capsys, monkeypatch, answer: str):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    args = ("--from", openface, "--convert", "tiny")
    _, err = run(capsys, *args, code=2)
    assert "was not accepted, nothing was converted" in err
    assert find_conversion("tiny") is None and not acceptances_file().exists()


def test_without_a_terminal_nobody_is_asked(openface: Path, capsys, monkeypatch):
    for stdin in (io.StringIO("y\n"), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        out, err = run(capsys, "--from", openface, "--convert", "tiny", code=2)
        assert out == "" and err.count("\n") == 1
        assert "no terminal" in err and "--accept-license" in err
        assert str(openface) in err
    assert find_conversion("tiny") is None


def test_another_licence_is_another_question(openface: Path, capsys):
    args = ("--from", openface, "--convert", "tiny")
    run(capsys, *args, "--accept-license")
    (openface / "Copyright.txt").write_text("And by someone else.")
    run(capsys, "--from", openface, "--convert", "svr", code=2)
    both = find_licence(openface / "model")
    assert both.text == f"{LICENCE.strip()}\n\nAnd by someone else."
    run(capsys, "--from", openface, "--convert", "svr", "--accept-license")
    assert len(json.loads(acceptances_file().read_text())["accepted"]) == 2


def test_without_licence_text_the_short_one_is_shown(
    shared_cache: Path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    out, _ = run(capsys, "--convert", "tiny")
    assert out.startswith(IN_SHORT)
    assert load_model("tiny").info.licence == IN_SHORT


@pytest.mark.parametrize("text", ["{", "[]", '{"accepted": 3}', "\xff"])
def test_damaged_memory(openface: Path, capsys, text: str):
    file = acceptances_file()
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode("latin-1"))
    _, err = run(capsys, "--from", openface, code=2)
    assert str(file) in err and "remove the file" in err and err.count("\n") == 1


# The published files.


@pytest.mark.shared
@pytest.mark.slow
def test_published_files(openface_dir: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(release, "_LISTS", PUBLISHED)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    out, _ = run(capsys, "--from", openface_dir.parent)
    assert out.count("complete, ") == 5 and "wrong" not in out
    assert "ceclm_general   4 of 20 files missing" in out
    out, err = run(capsys, "--from", openface_dir, "--convert", "clm_wild")
    assert err == "" and "NONCOMMERCIAL RESEARCH USE ONLY" in out
    original = load_model(openface_dir / "main_clm_wild.txt")
    converted = load_model("clm_wild")
    for a, b in zip(converted.experts, original.experts, strict=True):
        assert isinstance(a, SVRExperts) and isinstance(b, SVRExperts)
        np.testing.assert_array_equal(a.weights, b.weights)
    assert converted.info.licence == original.info.licence
