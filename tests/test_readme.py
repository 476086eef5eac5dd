"""The README holds its promises: its example runs, its commands are what they say."""

import re
from pathlib import Path

import cv2
import pytest

import jaxclnf
from jaxclnf.app.cli import COMMANDS
from tests.markdown import ROOT, blocks, run_block

README = ROOT / "README.md"


def marked(mark: str, language: str) -> tuple[int, str]:
    """Line and code of the one block with a mark."""
    ((_, line, code),) = [b for b in blocks(README, language) if b[0] == mark]
    return line, code


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


def test_each_command_is_one_line_for_a_fresh_machine() -> None:
    for mark, goal in (
        ("command: run", "jaxclnf fit PHOTO --model MODEL"),
        ("command: test", "python -m pytest"),
    ):
        _, code = marked(mark, "sh")
        (command,) = code.splitlines()
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert f".venv/bin/{goal}" in command


def test_the_commands_of_the_table_exist() -> None:
    text = README.read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `jaxclnf (\w+)", text, re.MULTILINE))
    assert shown == COMMANDS.keys()


def test_every_status_is_explained() -> None:
    text = README.read_text(encoding="utf-8")
    for status in jaxclnf.Status:
        assert (f"| `{status.name}` |" in text) == (status.name != "RUNNING")


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
