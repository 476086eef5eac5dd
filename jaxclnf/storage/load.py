"""Opening a model of whatever kind: a name, our own file, or one of OpenFace's."""

import os
from pathlib import Path

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxclnf.errors import ModelFileError
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import DEFAULT_WINDOW_SIZES
from jaxclnf.openface.main_file import read_openface_model, read_openface_pdm
from jaxclnf.openface.pdm_file import read_pdm
from jaxclnf.openface.text import read_text
from jaxclnf.pytree import with_reals_as
from jaxclnf.shape.pdm import PDM
from jaxclnf.storage.npz import read_model
from jaxclnf.storage.openface_cache import conversions, find_conversion

DEFAULT_MODEL = "default"
"""Name of the model that comes with the package."""

_PACKAGE = Path(__file__).parents[1]
# In an installed package, and in a checkout of the repository.
_MODEL_FOLDERS = (_PACKAGE / "models", _PACKAGE.parent / "models")


def load_model(
    path: str | os.PathLike[str] | None = None, *, dtype: DTypeLike = np.float32
) -> CLNFModel:
    """Loads a complete model, ready to fit with the default window sizes.

    Args:
        path: Our own model file (`.npz`), a main or detector file of OpenFace
            (`main_clnf_general.txt`), or the bare name of an embedded model or of one
            that `jaxclnf models --convert` converted (`clnf_general`); `None` for the
            default one.
        dtype: Floating type of the arrays; float64 needs JAX's x64 mode.

    Returns:
        The model, with Sigma matrices for the default window sizes, its parts with
        those for their own.

    Raises:
        ModelFileError: If there is no such model, or its files are damaged, do not fit
            together, or hold something that this version does not support.
        ValueError: If `dtype` is not float32, or float64 in x64 mode.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "tiny.npz")
        ...     save_model(model, file)
        ...     loaded = load_model(file)
        >>> loaded.pdm.num_landmarks == model.pdm.num_landmarks
        True
    """
    _check_dtype(dtype)
    file = _find(path)
    if file.suffix.lower() == ".npz":
        model = with_reals_as(read_model(file), dtype)
    else:
        model = read_openface_model(file, dtype)
    return model.prepared(DEFAULT_WINDOW_SIZES)


def load_pdm(
    path: str | os.PathLike[str] | None = None, dtype: DTypeLike = np.float32
) -> PDM:
    """Loads only a shape model.

    Args:
        path: As for `load_model`, or a PDM file of OpenFace. The experts are not looked
            at in OpenFace's files, so here they may be of any family, or missing.
        dtype: Floating type of the arrays; float64 needs JAX's x64 mode.

    Returns:
        The shape model.

    Raises:
        ModelFileError: If there is no such file or it is damaged.
        ValueError: As `load_model`.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "pdm.txt")
        ...     _ = file.write_text("3 1 6 0 0 1  3 1 6 1 0 0  1 1 6 4")
        ...     load_pdm(file).num_modes
        1
    """
    _check_dtype(dtype)
    file = _find(path)
    if file.suffix.lower() == ".npz":
        return with_reals_as(read_model(file).pdm, dtype)
    if _begins_with_number(file):
        return read_pdm(file, dtype)
    return read_openface_pdm(file, dtype)


def embedded_models() -> dict[str, Path]:
    """The models that come with the package.

    Returns:
        Their files by name.

    Example:
        >>> embedded_models()["default"].name
        'default.npz'
    """
    files = [file for folder in _MODEL_FOLDERS for file in sorted(folder.glob("*.npz"))]
    return {file.stem: file for file in reversed(files)}


def _check_dtype(dtype: DTypeLike) -> None:
    """Refuses a type that the arrays would not have."""
    name = np.dtype(dtype).name
    if name not in ("float32", "float64"):  # XLA's solvers know no others
        raise ValueError(f"dtype is {name}; expected float32 or float64")
    if jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise ValueError(
            f"dtype is {name} and JAX's x64 mode is off; expected float32, or before"
            " it jax.config.update('jax_enable_x64', True)"
        )


def _find(path: str | os.PathLike[str] | None) -> Path:
    """The file meant by a path or a bare name."""
    name = DEFAULT_MODEL if path is None else os.fspath(path)
    file = Path(name)
    is_bare = name == file.name and not file.suffix
    if is_bare and (known := embedded_models().get(name) or find_conversion(name)):
        return known
    if os.path.isfile(file) and file.suffix.lower() not in (".npz", ".txt"):
        raise ModelFileError(
            f"{file}: found suffix {file.suffix!r}, expected '.npz' (our own model"
            " file) or '.txt' (a main file of OpenFace)"
        )
    if is_bare:
        raise _unknown(name)
    return file


def _unknown(name: str) -> ModelFileError:
    """That neither an embedded model nor a converted one has this name."""
    how = (
        "pass a main file of OpenFace, such as main_clnf_general.txt, or a model file"
        " (.npz): load_model(PATH), or --model PATH on the command line"
    )
    if name == DEFAULT_MODEL:
        folders = " or ".join(map(str, _MODEL_FOLDERS))
        return ModelFileError(
            f"found no {name}.npz in {folders}, expected the embedded model, which is"
            f" part of jaxclnf: install jaxclnf again, or {how}"
        )
    converted = sorted({c.name for c in conversions() if c.is_current})
    embedded = sorted(embedded_models())
    return ModelFileError(
        f"found no model named {name!r}, expected an embedded one: {embedded},"
        f" one converted from OpenFace: {converted}, or a file; {how};"
        " `jaxclnf models` shows and converts what there is of OpenFace's"
    )


def _begins_with_number(file: Path) -> bool:
    for line in read_text(file).splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            return words[0].isdecimal()
    return False
