"""The user guide's examples run, one after the other in one namespace."""

from pathlib import Path

import pytest

import jaxclnf
from jaxclnf.app.train_config import read_train_config
from tests.markdown import ROOT, blocks, run_block

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(
    page: Path, example: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jaxclnf.save_model(example["model"], "model.npz")
    names = {name: example[name] for name in ("model", "image", "box")}
    examples = blocks(page, "python")
    assert examples
    for _, line, code in examples:
        run_block(page, line, code, names)


def test_configurations_of_the_guide_are_right(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("NOTICES.txt", "labels.npz", "shapes.npz"):
        (tmp_path / name).touch()
    found = [code for _, _, code in blocks(ROOT / "docs" / "guide.md", "toml")]
    assert len(found) == 2
    for number, code in enumerate(found):
        file = tmp_path / f"{number}.toml"
        file.write_text(code)
        config = read_train_config(file)
        assert (config.name, config.out) == ("mine", tmp_path / "build" / "mine")


def test_the_guide_is_short_and_has_all_subjects() -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    for name in (
        "fit_with_trace",
        "nu_rlms_init",
        "nu_rlms_step",
        "retract",
        "jax.vmap",
        "jax.jacfwd",
        "save_model",
        "load_model()",
        "jaxclnf train",
    ):
        assert name in text
