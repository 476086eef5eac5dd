"""Fixtures: the reference data, and the synthetic face with a known answer."""

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
