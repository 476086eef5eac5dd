"""A made-up release of OpenFace: three small models, their list, a home for them."""

import hashlib
import json
from pathlib import Path

import platformdirs
import pytest

from jaxclnf.openface import release
from tests.test_openface_readers import TRIANGLES, ccnf_file, pdm_file, svr_file

PUBLISHED = release._LISTS
"""Where the list of the real release is."""

LICENCE = "For research only, says the tiny licence.\n"

FILES: dict[str, bytes] = {
    "main_tiny.txt": b"LandmarkDetector tiny.txt\n"
    b"LandmarkDetector_part eye/main_eye.txt eye 2 0 1 2\n",
    "tiny.txt": b"PDM pdms/pdm.txt\nTriangulations tris.txt\nPatchesCCNF ccnf.txt\n",
    "pdms/pdm.txt": pdm_file().encode(),
    "tris.txt": TRIANGLES.encode(),
    "ccnf.txt": ccnf_file(),
    "eye/main_eye.txt": b"LandmarkDetector eye.txt\n",
    "eye/eye.txt": b"PDM ../pdms/pdm.txt\nPatchesIntensity svr.txt\n",
    "eye/svr.txt": svr_file().encode(),
    "main_svr.txt": b"LandmarkDetector svr.txt\n",
    "svr.txt": b"PDM pdms/pdm.txt\nPatchesIntensity eye/svr.txt\n",
    "main_apart.txt": b"LandmarkDetector apart.txt\n",
    "apart.txt": b"PDM pdms/pdm.txt\nPatchesCCNF apart.dat\n",
    "apart.dat": ccnf_file(num_components=0),
}
"""Contents of the published files."""

MODELS = {
    "tiny": [*FILES][:8],
    "svr": ["main_svr.txt", "svr.txt", "pdms/pdm.txt", "eye/svr.txt"],
    "apart": ["main_apart.txt", "apart.txt", "pdms/pdm.txt", "apart.dat"],
}
"""What each model needs."""


def write_list(file: Path) -> None:
    """Writes the list of the release."""
    files = {
        path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in FILES.items()
    }
    files["apart.dat"]["apart"] = True
    content = {"release": "9.9", "models": MODELS, "files": files}
    file.write_text(json.dumps(content), encoding="utf-8")


def write_models(folder: Path) -> Path:
    """Writes all files but the one apart into a folder of models."""
    for path, data in FILES.items():
        if path != "apart.dat":
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return folder


def isolate(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the user's folders under `home`, and the made-up release in force."""
    for name in ("OPENFACE_MODELS_DIR", "JAXCLNF_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for kind in ("data", "cache", "config"):

        def place(app: str, appauthor: bool, kind: str = kind) -> Path:
            assert appauthor is False  # Or there is one more folder on Windows.
            return home / kind / app

        monkeypatch.setattr(platformdirs, f"user_{kind}_path", place)
    home.mkdir()
    write_list(home / "list.json")
    monkeypatch.setattr(release, "_LISTS", (home / "list.json",))
