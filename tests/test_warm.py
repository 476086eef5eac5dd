"""Compiled programs are kept; `jaxclnf warm` makes those that `jaxclnf fit` takes."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxclnf.app.cli import main
from jaxclnf.storage.npz import save_model
from tests import synthetic
from tests.markdown import ROOT
from tests.plugin import QUICKLY

COMMAND = "import sys; from jaxclnf.app.cli import main; sys.exit(main(sys.argv[1:]))"

NO_TRACES = (
    "from jaxclnf.app.programs import keep_programs; keep_programs();"
    "import jaxclnf.app.traces as traces, jaxclnf.fitting.many as many;"
    "import jaxclnf.fitting.track as track;"
    "many.fit_face = track.fit_face = traces.TraceFolder.put = None;"
    "import sys; import jaxclnf.fitting.fit; import jaxclnf.fitting.separate;"
    "sys.modules['jaxclnf.fitting.fit'].fit_face = None;"
    "sys.modules['jaxclnf.fitting.separate'].finish_start = None;"
)
"""A process in which it is an error to trace a fit, or anything else that is kept."""


def run(home: Path, *args: str, before: str = "") -> subprocess.CompletedProcess:
    """The command in a process of its own, with another home, after some statements."""
    names = ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment |= QUICKLY
    return subprocess.run(
        [sys.executable, "-c", before + COMMAND, *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_what_was_made_ahead_is_used(tmp_path: Path):
    example = synthetic.example(np.float32)
    model, photo = str(tmp_path / "tiny.npz"), str(tmp_path / "photo.png")
    save_model(example["model"], model)
    assert cv2.imwrite(photo, example["image"])
    x, y, width, height = np.asarray(example["box"]).tolist()
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"x,y,width,height\n{x},{y},{width},{height}\n")

    same = ("--model", model, "--starts", "1", "--window-sizes", "7")
    warm = run(tmp_path, "warm", *same, "--sizes", "140", "200")
    assert warm.returncode == 0, warm.stderr
    assert warm.stdout.count("ready after") == 1  # both sizes share a canvas

    def programs() -> set[str]:
        folders = tmp_path.glob("cache/jaxclnf/programs/*")
        return {file.name for folder in folders for file in folder.glob("*-cache")}

    made = programs()
    assert any("fit_chunk" in name for name in made)
    out = str(tmp_path / "out")
    args = ("fit", photo, *same, "--boxes", str(boxes), "--out", out)
    done = run(tmp_path, *args, before=NO_TRACES)
    assert done.returncode == 0, done.stderr
    assert "1 converged" in done.stdout and done.stderr == ""
    assert not [name for name in programs() - made if "fit" in name]


@pytest.mark.slow
def test_what_was_made_ahead_for_videos_is_used(tmp_path: Path):
    """Programs of a face that is found, followed, lost and found again."""
    example = synthetic.example(np.float32)
    model, video = str(tmp_path / "tiny.npz"), tmp_path / "video"
    save_model(example["model"], model)
    video.mkdir()
    height, width = example["image"].shape
    for i in range(3):
        assert cv2.imwrite(str(video / f"{i}.png"), example["image"])
    same = ("--model", model, "--starts", "1", "--window-sizes", "7")
    size = f"{width}x{height}"
    warm = run(tmp_path, "warm", *same, "--videos", size)
    assert warm.returncode == 0, warm.stderr
    assert warm.stdout.startswith(f"videos of {size} pixels: ready after ")
    assert warm.stdout.count("ready after") == 1
    folder = tmp_path / "cache" / "jaxclnf" / "programs"

    def programs() -> set[str]:
        # Smaller ones are kept if they happen to take long.
        files = folder.glob("*/*-cache")
        return {file.name for file in files if file.stat().st_size > 50_000}

    made = programs()
    assert any("follow" in name for name in made)
    # The example's face is none to a detector: the frames tell where to look.
    code = NO_TRACES + (
        "import sys, numpy as np, jaxclnf.app.faces_setup as setup;"
        f"box = np.asarray({np.asarray(example['box']).tolist()});"
        "setup.FaceSetup.face_detector = lambda self, model: lambda *_: box[None];"
    )
    args = ("track", str(video), *same, "--out", str(tmp_path / "out"))
    done = run(tmp_path, *args, before=code)
    assert done.returncode == 0, done.stderr
    assert "3 frames, 3 with a face" in done.stdout
    assert programs() == made


@pytest.mark.parametrize("size", ["640", "640x", "0x480", "640x480x2", "9999999x2"])
def test_sizes_of_videos_that_are_none(size: str, capsys: pytest.CaptureFixture[str]):
    assert main(["warm", "--videos", size]) == 2
    expected = f"--videos {size}: must be sizes like 640x480, each side 1 to "
    assert expected in capsys.readouterr().err


def test_half_a_program_is_made_again_without_a_word(tmp_path: Path):
    code = (
        "from jaxclnf.app.programs import keep_programs; keep_programs();"
        "import jax, warnings; jax.jit(lambda x: 2 * x)(1.0); warnings.warn('mine')"
    )
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def once() -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    told = once()
    (program,) = tmp_path.glob("*lambda*-cache")
    whole = program.read_bytes()
    program.write_bytes(whole[: len(whole) // 2])
    assert once() == told and "mine" in told
    assert len(program.read_bytes()) > 0.9 * len(whole)


@pytest.mark.parametrize("jax_first", [False, True])
def test_programs_of_python_are_kept_too(tmp_path: Path, jax_first: bool):
    code = (
        f"{'import jax;' if jax_first else ''}import jaxclnf; jaxclnf.keep_programs();"
        "import jax; jax.jit(lambda x: jax.numpy.exp(x) @ x)(jax.numpy.ones((9, 9)))"
    )
    environment = {**os.environ, "JAXCLNF_CACHE_DIR": str(tmp_path / "mine")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("mine/programs/*/*lambda*-cache"))

    # What the user chose stays.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "chosen")
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
    assert list(tmp_path.glob("chosen/*lambda*-cache"))


@pytest.mark.slow
def test_traces_of_python_are_kept_too(tmp_path: Path):
    save_model(synthetic.example(np.float32)["model"], tmp_path / "tiny.npz")
    code = (
        "import numpy as np; from tests import synthetic;"
        "from jaxclnf import FitOptions, fit, load_model;"
        f"model = load_model({str(tmp_path / 'tiny.npz')!r});"
        "example = synthetic.example(np.float32);"
        "image, box = example['image'], np.asarray(example['box']);"
        "options = FitOptions(window_sizes=(7,), starts=3);"
        "end = fit(model, image, box, options=options);"
        "print(np.asarray(end.landmarks).tobytes().hex())"
    )
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen")}
    told = []
    keep, *_ = NO_TRACES.partition("import jaxclnf.app.traces")
    for before in (keep, f"import jax; {NO_TRACES}"):
        done = subprocess.run(
            [sys.executable, "-c", before + code],
            cwd=ROOT,
            env=environment | QUICKLY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1] and len(told[0]) > 150
    assert list(tmp_path.glob("chosen/jaxclnf-traced/jaxclnf.fitting.*"))


@pytest.mark.parametrize("size", ["0", "-512", "20000"])
def test_wrong_sizes(size: str, capsys: pytest.CaptureFixture):
    assert main(["warm", "--sizes", size]) == 2
    assert f"--sizes {size}: must be numbers, 1 to 16383" in capsys.readouterr().err


def test_wrong_sizes_of_photographs(capsys: pytest.CaptureFixture):
    assert main(["warm", "--dialect", "openface", "--sizes", "40000"]) == 2
    assert "--sizes 40000: must be numbers, 1 to 32768" in capsys.readouterr().err


def test_no_sizes(capsys: pytest.CaptureFixture):
    assert main(["warm", "--sizes"]) == 2
    assert "--sizes (none): must be numbers" in capsys.readouterr().err
