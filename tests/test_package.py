"""What importing the package does, and what it must not do."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import jaxclnf
from tests.plugin import RUNNING, forget_half_written, missing_data

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_importing_loads_little() -> None:
    code = "import sys, jaxclnf; print(*sorted(sys.modules))"
    loaded = set(run_python(code).split())
    assert "jaxclnf" in loaded
    assert not loaded & {"cv2", "tyro", "jax", "scipy"}


LOAD_ALL = """
import sys
import jaxclnf
inner = ("errors", "status", "experts.", "shape.", "solver.", "fitting.", "storage.")
for name, home in jaxclnf._HOME.items():
    if home.startswith(inner):
        getattr(jaxclnf, name)
from jax._src import xla_bridge
print("cv2" in sys.modules, dict(xla_bridge._backends))
for name in jaxclnf.__all__:
    getattr(jaxclnf, name)
print("cv2" in sys.modules, dict(xla_bridge._backends))
"""


def test_loading_everything_touches_no_device() -> None:
    # OpenCV comes with the detector alone.
    assert run_python(LOAD_ALL) == "False {}\nTrue {}\n"


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert jaxclnf.__version__ == project["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{project['version']}]" in changelog


def test_licence_and_types_are_announced() -> None:
    assert metadata("jaxclnf")["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (ROOT / "jaxclnf" / "py.typed").exists()


def test_the_embedded_model_and_its_notices() -> None:
    model = jaxclnf.load_model()
    assert model.pdm.num_landmarks == 68
    assert len(model.experts) >= 3
    assert model.box_calibration is not None
    assert model.info.name == "default"
    folder = ROOT / "models"
    notices = (folder / "NOTICES.txt").read_text(encoding="utf-8")
    assert model.info.licence.strip() == notices.strip()
    assert (folder / "default.npz").stat().st_size < 3e6
    for owner in ("USC Institute for Creative Technologies", "David Beniaguev"):
        assert re.search(rf"^Copyright \(c\) \d+ {owner}$", notices, re.MULTILINE)
    assert notices.count("Permission is hereby granted, free of charge") == 2
    assert "Chris McAndrew / UK Parliament" in notices


def test_models_travel_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "models/NOTICES.txt" in project["project"]["license-files"]
    targets = project["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["force-include"] == {"models": "jaxclnf/models"}
    assert {"/models", "/docs"} <= set(targets["sdist"]["include"])


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="jaxclnf")
    assert command.value == "jaxclnf.app.cli:main"
    assert callable(command.load())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        jaxclnf.fitt  # noqa: B018


def test_ci_leaves_out_no_shared_test_whose_data_are_there(tmp_path: Path) -> None:
    there, nowhere = tmp_path, tmp_path / "nowhere"
    assert "no folder" in (missing_data(nowhere, there, in_ci=True) or "")
    assert missing_data(there, nowhere, in_ci=True) is None
    assert missing_data(nowhere, nowhere, in_ci=True) is None
    assert missing_data(nowhere, there, in_ci=False) is None


def test_what_a_killed_run_wrote_last_is_compiled_again(tmp_path: Path) -> None:
    for age, name in enumerate(("young", "old")):
        (tmp_path / f"{name}-cache").write_bytes(b"program")
        os.utime(tmp_path / f"{name}-cache", (1e9 - age, 1e9 - age))
    forget_half_written(tmp_path)
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / RUNNING).touch()
    forget_half_written(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["old-cache", RUNNING]
