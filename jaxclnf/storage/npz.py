"""Our own model file: one compressed `.npz`, checked, without pickles.

The entry `header` is JSON in UTF-8: format, version, checksum, the names of the other
entries, and the model. There a dataclass is `{"type": ..., "fields": {...}}`, an array
`{"array": entry}`, a dictionary `{"items": [[key, value], ...]}`, a tuple a list. So a
new field with a default, or a new type, needs a line in `_TYPES` at most; old files
read as before, and older programs refuse newer files. Equal arrays are stored once.
"""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclnf.errors import MAX_FILE_BYTES, ModelFileError, read_bytes
from jaxclnf.experts.types import CCNFExperts, CENExperts, CENLayer, SVRExperts
from jaxclnf.fitting.joint import JointValidator
from jaxclnf.fitting.likelihood import LikelihoodValidator
from jaxclnf.fitting.model import (
    BoxCalibration,
    CLNFModel,
    CLNFPart,
    EarlyTermination,
    ModelInfo,
)
from jaxclnf.fitting.validate import (
    Convolution,
    FullyConnected,
    MaxPooling,
    ReLU,
    Sigmoid,
    Validator,
)
from jaxclnf.fitting.warp import FaceWarp
from jaxclnf.shape.pdm import PDM
from jaxclnf.whole_files import write_whole

FORMAT = "jaxclnf-model"
"""Tells our files from other `.npz` files."""
VERSION = 1
"""Raised when an older program could no longer read a file rightly."""

_TYPES = {
    "model": CLNFModel,
    "part": CLNFPart,
    "info": ModelInfo,
    "boxes": BoxCalibration,
    "pdm": PDM,
    "ccnf": CCNFExperts,
    "svr": SVRExperts,
    "cen": CENExperts,
    "cen_layer": CENLayer,
    "early_termination": EarlyTermination,
    "validator": Validator,
    "likelihood_validator": LikelihoodValidator,
    "joint_validator": JointValidator,
    "face_warp": FaceWarp,
    "convolution": Convolution,
    "fully_connected": FullyConnected,
    "max_pooling": MaxPooling,
    "relu": ReLU,
    "sigmoid": Sigmoid,
}
_TYPE_NAMES = {cls: name for name, cls in _TYPES.items()}
_DERIVED: dict[type, tuple[str, ...]] = {CCNFExperts: ("sigma",)}
"""Dictionaries that are computed from the rest, and come back empty."""

_HEADER = "header"
# Zip's earliest date: files of equal models are then equal byte by byte.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def save_model(model: CLNFModel, path: str | os.PathLike[str]) -> None:
    """Writes a model into one file; an older one is replaced as a whole or not at all.

    Sigma matrices are left out; `CLNFModel.prepared` computes them again.

    Args:
        model: The model.
        path: File to write, ending in `.npz`.

    Raises:
        TypeError: If it is no model, or holds what is no array.
        ModelFileError: If the name does not end in `.npz`, or is that of a folder.
        FileNotFoundError: If the folder is missing.
        OSError: If the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "tiny.npz")
        ...     save_model(model, file)
        ...     again = read_model(file)
        >>> again.info == model.info, len(again.experts) == len(model.experts)
        (True, True)
    """
    path = Path(path)
    if not isinstance(model, CLNFModel):
        raise TypeError(f"model is a {type(model).__name__}; expected a CLNFModel")
    if path.is_dir():
        raise ModelFileError(f"{path}: found a folder, expected a place for the file")
    if path.suffix.lower() != ".npz":
        raise ModelFileError(f"{path}: found suffix {path.suffix!r}, expected '.npz'")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path}: found no folder {path.parent}, expected one to write the file in"
        )
    encoder = _Encoder()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": encoder.encode(model),
        "arrays": sorted(encoder.arrays),
    }
    header = {**content, "checksum": _checksum(content, encoder.arrays)}
    text = json.dumps(header, indent=1).encode()
    entries = {_HEADER: np.frombuffer(text, np.uint8), **encoder.arrays}
    write_whole(path, _pack(entries))


def read_model(path: str | os.PathLike[str]) -> CLNFModel:
    """Reads a model that `save_model` wrote; every bit is as it was.

    Args:
        path: The file.

    Returns:
        The model, without Sigma matrices. float64 arrays need JAX's x64 mode to stay
        what they are.

    Raises:
        ModelFileError: If the file is damaged, not ours, or of a newer version.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "tiny.npz")
        ...     save_model(model, file)
        ...     again = read_model(file)
        >>> bool((again.pdm.mean_shape == model.pdm.mean_shape).all())
        True
    """
    path = Path(path)
    arrays = _unpack(path)
    header = _read_header(path, arrays.pop(_HEADER, None))
    missing = sorted({*map(str, header["arrays"])} - {*arrays})
    if missing:
        raise ModelFileError(
            f"{path}: found no arrays {', '.join(missing)}, expected all that its"
            " header names"
        )
    checksum = header.pop("checksum")
    found = _checksum(header, arrays)
    if checksum != found:
        raise ModelFileError(
            f"{path}: found checksum {found}, expected {checksum}; the file is damaged"
        )
    try:
        model = _Decoder(path, arrays).decode(header["model"])
    except ModelFileError:
        raise
    except (TypeError, ValueError) as error:  # from another writer
        raise ModelFileError(
            f"{path}: found what is no model ({error}), expected what save_model writes"
        ) from error
    if not isinstance(model, CLNFModel):
        raise ModelFileError(
            f"{path}: found a {type(model).__name__}, expected a model"
        )
    _check_validator(path, model)
    return model


def _check_validator(path: Path, model: CLNFModel) -> None:
    match model.validator:
        case LikelihoodValidator(weights=weights, biases=biases):
            of_scales = [weights, biases]
        case JointValidator(
            network=Validator(layers=(*_, FullyConnected(bias=last))),
            network_weights=shares,
            likelihood=LikelihoodValidator(weights=weights, biases=biases),
        ) if np.shape(last)[-1:] == (1,):
            of_scales = [shares, weights, biases]
        case JointValidator():
            raise ModelFileError(
                f"{path}: found a joint validator without one of its halves or with"
                " several outputs, expected a network of one output and a likelihood"
            )
        case _:
            of_scales = []
    shapes = {np.shape(array) for array in of_scales}
    if shapes - {(len(model.experts),)}:
        raise ModelFileError(
            f"{path}: found a validator of shapes {sorted(shapes)}, expected"
            f" {len(model.experts)} weights and biases, one for each scale"
        )


class _Encoder:
    """Turns a model into JSON and the arrays it refers to."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}

    def encode(self, value: Any) -> Any:
        if type(value) in _TYPE_NAMES:
            derived = _DERIVED.get(type(value), ())
            fields = {
                field.name: self.encode(getattr(value, field.name))
                for field in dataclasses.fields(value)
                if field.name not in derived
            }
            return {"type": _TYPE_NAMES[type(value)], "fields": fields}
        if isinstance(value, jax.Array | np.ndarray):
            return {"array": self._name_of(np.asarray(value, order="C"))}
        if isinstance(value, dict):
            pairs = [[key, self.encode(value[key])] for key in sorted(value)]
            return {"items": pairs}
        if isinstance(value, tuple):
            return [self.encode(item) for item in value]
        if isinstance(value, str | int | float | None):
            return value
        raise TypeError(f"found a {type(value).__name__} in a model, cannot store it")

    def _name_of(self, array: np.ndarray) -> str:
        if array.dtype.kind not in "biuf":
            raise TypeError(f"found {array.dtype} in a model, cannot store it")
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        name = self._names.setdefault(key, f"array_{len(self._names):04}")
        self.arrays[name] = array
        return name


class _Decoder:
    """Turns JSON and arrays back into a model."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        self._path = path
        self._arrays = {name: jax.device_put(array) for name, array in arrays.items()}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self.decode(item) for item in value)
        if not isinstance(value, dict):
            return value
        match value:
            case {"array": str(name)} if name in self._arrays:
                return self._arrays[name]
            case {"items": list(pairs)}:
                return {key: self.decode(item) for key, item in pairs}
            case {"type": str(name), "fields": dict(fields)} if name in _TYPES:
                return self._build(_TYPES[name], fields)
        raise ModelFileError(
            f"{self._path}: found {json.dumps(value)[:60]}, expected an array,"
            f" a dictionary, or one of {', '.join(_TYPES)}"
        )

    def _build(self, cls: type, fields: dict[str, Any]) -> Any:
        known = {field.name: field for field in dataclasses.fields(cls)}
        derived = {name: {} for name in _DERIVED.get(cls, ())}
        given = {*fields, *derived}
        required = {
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        }
        if not required <= given <= {*known}:
            raise ModelFileError(
                f"{self._path}: found {cls.__name__} with {', '.join(sorted(given))},"
                f" expected {', '.join(known)}"
            )
        decoded = {name: self.decode(value) for name, value in fields.items()}
        return cls(**decoded, **derived)


def _checksum(content: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_header(path: Path, entry: np.ndarray | None) -> dict[str, Any]:
    foreign = ModelFileError(
        f"{path}: found an .npz file of another program, expected a {FORMAT} file"
    )
    if entry is None or entry.dtype != np.uint8:
        raise foreign
    try:
        header = json.loads(entry.tobytes())
    except (ValueError, RecursionError) as error:
        raise foreign from error
    match header:
        case {"format": str(name), "version": int(version)} if name == FORMAT:
            pass
        case _:
            raise foreign
    if version > VERSION:
        raise ModelFileError(
            f"{path}: found format version {version}, expected at most {VERSION};"
            " a newer jaxclnf wrote this file"
        )
    match header:
        case {"checksum": str(), "arrays": list(), "model": dict()}:
            return header
    raise ModelFileError(
        f"{path}: found a header with {', '.join(header)}, expected checksum, arrays"
        " and model"
    )


def _pack(entries: dict[str, np.ndarray]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in entries.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, array, (1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever it is written.
            archive.writestr(entry, data.getvalue())
    return packed.getvalue()


def _unpack(path: Path) -> dict[str, np.ndarray]:
    data = read_bytes(path)
    if not data.startswith(b"PK"):
        raise ModelFileError(
            f"{path}: found a file that begins with {data[:8]!r}, expected an .npz file"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_FILE_BYTES:
                raise ValueError(f"{size} bytes unpacked, more than {MAX_FILE_BYTES}")
            for entry in archive.infolist():
                # Other methods end in errors of their own kinds.
                if entry.compress_type not in (
                    zipfile.ZIP_STORED,
                    zipfile.ZIP_DEFLATED,
                ):
                    raise ValueError(f"compression of type {entry.compress_type}")
            return {
                name.removesuffix(".npy"): _parse_npy(archive.read(name))
                for name in archive.namelist()
            }
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        NotImplementedError,  # A flipped bit asks for a later version of Zip ...
        RuntimeError,  # ... or for a password.
    ) as error:
        raise ModelFileError(
            f"{path}: found a damaged archive ({error}), expected an .npz file"
        ) from error


def _parse_npy(data: bytes) -> np.ndarray:
    # Not NumPy's own reader: it allocates what the header asks for before it looks.
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"array format {version}")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    values = np.frombuffer(data, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if is_fortran else "C")
