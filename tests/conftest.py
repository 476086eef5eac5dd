"""Fixtures: the reference data, and the synthetic face with a known answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import synthetic
from tests.plugin import SHARED


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the reference data; tests that use it carry the mark `shared`."""
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Reference arrays from the C++ program."""
    return shared / "golden"


@pytest.fixture(scope="session")
def openface_dir(shared: Path) -> Path:
    """OpenFace's model files."""
    return shared / "openface-model" / "model"


@pytest.fixture(scope="session")
def example() -> dict:
    """The names that the doctests use: pdm, params, model, image, box, ..."""
    return synthetic.example()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the commands would say if what they do took long."""
    said: list[str] = []

    @contextmanager
    def said_if_slow(text: str) -> Iterator[None]:
        said.append(text)
        yield

    for command in ("fit", "track"):
        monkeypatch.setattr(f"jaxclnf.app.{command}.said_if_slow", said_if_slow)
    return said
