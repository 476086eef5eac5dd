"""The README holds its promises: its example runs, its commands are what they say."""

import csv
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

import jaxclnf
from jaxclnf.app.cli import COMMANDS, main
from tests.markdown import ROOT, blocks, run_block

README = ROOT / "README.md"


def marked(mark: str, language: str) -> tuple[int, str]:
    """Line and code of the one block with a mark."""
    ((_, line, code),) = [b for b in blocks(README, language) if b[0] == mark]
    return line, code


@pytest.mark.slow
def test_the_example_runs(
    example: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    jaxclnf.save_model(example["model"], "model.npz")
    cv2.imwrite("photo.png", example["image"])
    line, code = marked("example", "python")
    assert len(code.splitlines()) <= 14
    names = {}
    run_block(README, line, code, names)
    assert capsys.readouterr().out == "CONVERGED (12, 2)\n"
    error = abs(names["landmarks"] - example["landmarks"].astype("float32"))
    assert error.max() < 3.0


def last_words(mark: str) -> list[str]:
    """What a marked command runs, once it has installed the package."""
    _, code = marked(mark, "sh")
    (command,) = code.splitlines()
    first, second, third = command.split(" && ")
    assert first == "python3 -m venv .venv"
    assert second.startswith(".venv/bin/pip install ")
    program, *words = shlex.split(third)
    return [program.removeprefix(".venv/bin/"), *words]


def test_each_command_is_one_line_for_a_fresh_machine() -> None:
    # .ci/run runs both as they are.
    assert last_words("command: run") == ["jaxclnf", "fit", "docs/astronaut.jpg"]
    assert last_words("command: test")[:3] == ["python", "-m", "pytest"]


IN_THE_PHOTOGRAPH = {
    8: (222, 178),  # chin
    30: (223, 127),  # tip of the nose
    36: (194, 102),  # outer corners of the eyes
    45: (257, 104),
    48: (202, 139),  # corners of the mouth
    54: (247, 139),
}
"""Where a person sees some landmarks of the face, pixels."""


@pytest.mark.slow
def test_the_embedded_model_fits_the_photograph(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, *words = last_words("command: run")
    monkeypatch.chdir(ROOT)
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "1 face, 1 converged, 1 trusted" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["astronaut.csv", "astronaut.png", "boxes.csv", "summary.csv"]
    with open(tmp_path / "astronaut.csv", newline="") as file:
        (face,) = csv.DictReader(file, skipinitialspace=True)
    assert float(face["confidence"]) > 0.99
    for landmark, seen in IN_THE_PHOTOGRAPH.items():
        found = [float(face[f"{axis}_{landmark}"]) for axis in "xy"]
        # A tenth of the distance of the eyes.
        assert np.hypot(*np.subtract(found, seen)) < 6.3, landmark


def test_the_commands_of_the_table_exist() -> None:
    text = README.read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `jaxclnf (\w+)", text, re.MULTILINE))
    assert shown == COMMANDS.keys()


def test_every_status_is_explained() -> None:
    text = README.read_text(encoding="utf-8")
    for status in jaxclnf.Status:
        assert (f"| `{status.name}` |" in text) == (status.name != "RUNNING")


@pytest.mark.parametrize(
    "page",
    [
        page
        for folder in (".", "docs", "models")
        for page in ROOT.glob(f"{folder}/*.md")
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
