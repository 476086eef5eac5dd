"""`jaxclnf train`: a model from labelled photographs."""

import dataclasses
import importlib.util
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxclnf.app.errors import ArgumentError, MediaError
from jaxclnf.app.media import make_folder, write_bytes
from jaxclnf.app.streams import say_error
from jaxclnf.app.train_archives import ARCHIVE_ERRORS, unreadable
from jaxclnf.app.train_config import TrainConfig, read_train_config
from jaxclnf.app.train_data import DataReport, read_training_faces
from jaxclnf.app.train_store import FolderStore, fingerprint
from jaxclnf.experts.types import CCNFExperts
from jaxclnf.fitting.joint import JointValidator
from jaxclnf.fitting.model import CLNFModel, ModelInfo
from jaxclnf.learn.boxes import calibrate_boxes, squares_of_faces
from jaxclnf.learn.faces import LabelledFaces, held_out
from jaxclnf.learn.masking import floor_spread
from jaxclnf.storage.npz import save_model

if TYPE_CHECKING:
    from jaxclnf.learn.validator import LearntValidator

_BLENDSHAPES = {
    "neutral": ("n", 3),
    "identity": ("i", "n", 3),
    "expression": ("e", "n", 3),
    "expression_names": ("e",),
}
"""Arrays of `ShapeOptions.blendshapes`, and their shapes."""


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Learns a model from labelled photographs.

    An interrupted run goes on where it was when the same command is given again.
    """

    config: Annotated[Path, tyro.conf.Positional]
    """The TOML file that says from what and how; see the user guide."""
    keep_going: bool = False
    """Train without the faces that cannot be used, instead of stopping."""

    def run(self) -> int:
        """Does the work.

        Returns:
            The exit code.
        """
        if importlib.util.find_spec("optax") is None:
            raise ArgumentError(
                "training needs the package optax: pip install 'jaxclnf[train]'"
            )
        started = time.monotonic()

        def say(text: str) -> None:
            seconds = time.monotonic() - started
            print(f"[{seconds:7.1f} s] {text}", flush=True)

        config = read_train_config(self.config)
        faces, report = read_training_faces(
            config.data,
            keep_going=self.keep_going,
            max_face_px=config.labels.max_face_px,
            num_landmarks=config.labels.num_landmarks,
        )
        for problem in report.problems:
            say_error(f"left out: {problem}")
        say(report.summary)
        make_folder(config.out)  # now, not after hours
        file = config.out / f"{config.name}.npz"
        if file.is_dir():
            raise MediaError(f"{file}: is a folder, expected a place for the model")
        try:
            model, figures = train_model(config, faces, say)
            save_model(model, file)
        except KeyboardInterrupt as error:
            error.add_note("the same command goes on from what was learnt")
            raise
        except ValueError as error:
            raise ArgumentError(f"{self.config}: {error}") from error
        except OSError as error:
            raise MediaError(
                f"{error.filename or config.out}: cannot be written"
                f" ({error.strerror or error})"
            ) from error
        figures = {
            "model": file.name,
            "megabytes": round(file.stat().st_size / 1e6, 3),
            "data": _data_figures(config, report),
            "left_out": list(report.problems),
            **figures,
            "seconds": round(time.monotonic() - started, 1),
        }
        text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
        write_bytes(config.out / "summary.json", text.encode())
        for reason in figures["missing"]:
            say_error(f"{file}: {reason}. All its fits that do not fail are trusted")
        say(f"model: {file}; summary: {config.out / 'summary.json'}")
        return 0


def train_model(
    config: TrainConfig, faces: LabelledFaces, say: Any
) -> tuple[CLNFModel, dict[str, Any]]:
    """Runs all of a training but for reading and writing the model.

    Args:
        config: What to do.
        faces: The faces.
        say: Shows a line of progress.

    Returns:
        The model, its arrays as exact as its file will hold them, and figures for the
        summary.

    Raises:
        ValueError: The faces do not suffice for what the options ask.

    Example:
        >>> import inspect
        >>> list(inspect.signature(train_model).parameters)
        ['config', 'faces', 'say']
    """
    from jaxclnf.learn import chain  # needs optax
    from jaxclnf.learn.accuracy import held_out_accuracy
    from jaxclnf.learn.validator import learn_validator

    faces = floor_spread(faces, config.labels.min_spread_percent)
    is_held_out = _held_out(faces, config.labels.held_out)
    num_landmarks = faces.landmarks.shape[1]
    try:
        outline = config.labels.outline_of(num_landmarks)
    except ValueError as error:
        raise ValueError(f"[labels] {error}") from error
    blendshapes = _read_blendshapes(config.shape.blendshapes, num_landmarks)
    licence = "\n\n".join(_read_text(file) for file in config.licence_files)
    mark = fingerprint(_decisive(config), faces, blendshapes)
    store = FolderStore(make_folder(config.out / "checkpoints" / mark))
    say(f"{is_held_out.sum()} faces held out; checkpoints in {store.folder}")
    try:
        shape = chain.learn_shape(
            faces,
            is_held_out,
            config.shape,
            blendshapes=blendshapes,
            outline=outline,
            outline_limit=float(np.radians(config.labels.mask_far_outline_deg)),
            seed=config.seed,
            say=say,
        )
    except ValueError as error:
        raise ValueError(f"[shape] {error}") from error
    calibration = None
    if config.boxes.calibrate:  # before the long part: it may find too few faces
        found = calibrate_boxes(*squares_of_faces(faces.pick(~is_held_out)))
        calibration = found.calibration
        say(f"boxes: the detector finds {found.share:.1%} of the faces")
    experts = chain.learn_experts(
        shape, is_held_out, config.experts, seed=config.seed, store=store, say=say
    )
    info = ModelInfo(
        name=config.name,
        licence=licence,
        provenance=config.provenance,
    )
    variances = config.shape.variance_factor * shape.pdm.eigen_values
    pdm = dataclasses.replace(shape.pdm, eigen_values=variances)
    model = compact(
        CLNFModel(pdm=pdm, experts=experts, info=info, box_calibration=calibration)
    )
    learnt, said = None, [""]
    if config.validator.learn:
        learnt = learn_validator(
            model,
            shape.faces,
            is_held_out,
            config.validator,
            symmetric=shape.mirror is not None,
            seed=config.seed,
            say=lambda text: said.append(text) or say(text),
        )
    if learnt is not None:
        say(f"validator: {learnt}")
        model = compact(dataclasses.replace(model, validator=learnt.validator))
    unseen = shape.faces.pick(is_held_out)
    yaw = chain.yaw_of(shape.params)[is_held_out]
    accuracy = held_out_accuracy(model, unseen, yaw)
    say(f"held-out faces: {accuracy}")
    figures = {
        "held_out": int(is_held_out.sum()),
        "shape_noise_mm": round(float(shape.noise.mean()), 4),
        "confidence": [
            [round(float(c), 3) for c in np.asarray(e.confidence).mean(axis=1)]
            for e in experts
        ],
        "validator": None if learnt is None else _validator_figures(learnt),
        "missing": said[-1:] if config.validator.learn and learnt is None else [],
        "accuracy": {
            name: value if np.isfinite(value) else None
            for name, value in dataclasses.asdict(accuracy).items()
        },
        "seed": config.seed,
        "checkpoints": mark,
    }
    return model, figures


def compact(model: CLNFModel) -> CLNFModel:
    """Rounds the filters to half precision, which is how they are stored.

    Args:
        model: A model.

    Returns:
        The model with float16 filters, and so the weights of its validator's network;
        `load_model` makes them float32 or float64 again, which changes no number.

    Example:
        >>> compact(model).experts[0].weights.dtype
        dtype('float16')
    """
    experts = tuple(
        dataclasses.replace(e, weights=e.weights.astype(jnp.float16))
        if isinstance(e, CCNFExperts)
        else e
        for e in model.experts
    )
    validator = model.validator
    if isinstance(validator, JointValidator):
        halved = lambda x: x.astype(jnp.float16)
        layers = jax.tree.map(halved, validator.network.layers)
        network = dataclasses.replace(validator.network, layers=layers)
        validator = dataclasses.replace(validator, network=network)
    return dataclasses.replace(model, experts=experts, validator=validator)


def _decisive(config: TrainConfig) -> tuple:
    """What decides over checkpoints, besides faces and blendshapes."""
    labels = config.labels
    shape = dataclasses.replace(config.shape, blendshapes=None, variance_factor=1.0)
    masked = labels.outline, labels.mask_far_outline_deg
    return config.seed, labels.held_out, masked, shape, config.experts


def _held_out(faces: LabelledFaces, share: float) -> np.ndarray:
    found = held_out(faces.names, share)
    if found.all() or not found.any():
        raise ValueError(
            f"[labels] held_out: found {share:g}, which holds out {found.sum()} of the"
            f" {len(found)} faces, expected some to learn from and some to check on"
        )
    return found


def _read_blendshapes(
    path: Path | None, num_landmarks: int
) -> dict[str, np.ndarray] | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except ARCHIVE_ERRORS as error:
        raise ArgumentError(unreadable(path, error)) from error
    if missing := sorted(_BLENDSHAPES.keys() - found.keys()):
        raise ArgumentError(
            f"{path}: found no arrays {missing}, expected {sorted(_BLENDSHAPES)}"
        )
    sizes: dict[Any, int] = {3: 3, "n": num_landmarks}
    for key, shape in _BLENDSHAPES.items():
        array, is_text = found[key], key == "expression_names"
        fits = array.ndim == len(shape) and all(
            size == sizes.setdefault(axis, size)
            for axis, size in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in ("U" if is_text else "fiu"):
            axes = ", ".join(str(sizes.get(axis, axis)) for axis in shape)
            raise ArgumentError(
                f"{path}: found '{key}' with {array.dtype} of shape {array.shape},"
                f" expected {'text' if is_text else 'numbers'} of shape ({axes})"
            )
        if not is_text and not np.isfinite(array).all():
            raise ArgumentError(f"{path}: found '{key}' with numbers not finite")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: cannot be read as text: {error}") from error


def _validator_figures(learnt: "LearntValidator") -> dict[str, list[float]]:
    """For each scale."""
    found, figures = learnt.validator, {}
    if isinstance(found, JointValidator):
        figures["network_weights"] = found.network_weights
        found = found.likelihood
    figures |= {"weights": found.weights, "biases": found.biases}
    rounded = {
        name: [round(float(x), 4) for x in values] for name, values in figures.items()
    }
    return rounded | {
        "trusted_in_place": learnt.trusted_in_place,
        "trusted_lost": learnt.trusted_lost,
    }


def _data_figures(config: TrainConfig, report: DataReport) -> list[dict[str, Any]]:
    return [
        {"images": source.images.name, "used": used, "marked_unused": unwanted}
        for source, used, unwanted in zip(
            config.data, report.num_used, report.num_unwanted, strict=True
        )
    ]
