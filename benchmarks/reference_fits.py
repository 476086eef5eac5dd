"""Whole fits in the openface dialect beside those of the C++ program.

Two families of reference files: `fits_*` has the faces of OpenFace's own samples with
the results of a second build of the program; `fits300w_*` has annotated photographs.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from annotated import error, shared_folder

import jaxclnf
from jaxclnf.app.datasets import read_pts
from jaxclnf.app.media import read_image
from jaxclnf.fitting.face import conclude_face
from jaxclnf.fitting.hypotheses import fit_starts

EXPERTS = {
    "clnf_general": "clnf_general",
    "clnf_general_nohier": "clnf_general",
    "clnf_general_wildparams": "clnf_general",
    "clnf_wild": "clnf_wild",
    "clnf_multi_pie": "clnf_multi_pie",
    "clm_general": "clm_general",
}
"""The model behind each configuration of the reference files."""

MODES = {"single": 1, "multi": 11}
"""Starts of each kind of file."""

FAMILIES = ("fits", "fits300w")
"""Samples with a second build, and annotated photographs."""

_CANVAS = 4096
"""One size for all photographs, so that a configuration is compiled once."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One face of a reference file and what the C++ program made of it."""

    name: str
    """The face, for people."""
    image: np.ndarray
    """Grey values."""
    box: np.ndarray
    """Where the fit starts."""
    landmarks: np.ndarray
    """Landmarks of the C++ program."""
    likelihood: float
    """Its log-likelihood."""
    certainty: float
    """Its validator's word."""
    start: int | None
    """Which start it kept, where the file says."""
    second_build: float
    """Largest coordinate difference of the second build, pixels; NaN if unknown."""
    truth: np.ndarray | None
    """Annotated landmarks, if there are some."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Our fit beside that of the C++ program."""

    case: Case
    """The face."""
    difference: float
    """Largest difference of a coordinate, pixels."""
    likelihood: float
    """Difference of the log-likelihoods."""
    certainty: float
    """Difference of the validator's words."""
    same_start: bool
    """Whether the same start was kept, where that is known."""
    our_error: float
    """Error over the distance of the outer eye corners; NaN without annotation."""
    their_error: float
    """That of the C++ program."""


def options_of(configuration: str, mode: str) -> jaxclnf.FitOptions:
    """The preset of a configuration."""
    preset = jaxclnf.FitOptions.openface
    if configuration in ("clnf_wild", "clnf_general_wildparams"):
        preset = jaxclnf.FitOptions.openface_wild
    return preset(parts=not configuration.endswith("nohier"), starts=MODES[mode])


def model_of(configuration: str) -> jaxclnf.CLNFModel:
    """The model of a configuration, prepared."""
    windows = options_of(configuration, "single").window_sizes
    return _prepared(EXPERTS[configuration], windows)


@cache
def _prepared(experts: str, windows: tuple[int, ...]) -> jaxclnf.CLNFModel:
    folder = shared_folder() / "openface-model" / "model"
    model = jaxclnf.load_model(folder / f"main_{experts}.txt")
    return model.prepared(windows, whole_sigma=True)


def cases(configuration: str, mode: str, family: str, every: int = 1) -> Iterator[Case]:
    """The faces of a reference file, from the first on in steps of `every`."""
    golden = shared_folder() / "golden"
    with np.load(golden / f"{family}_{configuration}_{mode}.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "meta"}
    with np.load(golden / "gray_images.npz") as file:
        samples = {name: file[name] for name in file.files}
    for i in range(0, len(arrays["bbox"]), every):
        name = str(arrays["image"][i])
        truth = None
        if family == "fits":
            image = samples[name.replace(".", "_")]
        else:
            path = _photograph(str(arrays["dataset"][i]), name)
            image = read_image(path)[1]
            truth = read_pts(path.with_suffix(".pts"))
        yield Case(
            name=f"{name} {i}",
            image=image,
            box=arrays["bbox"][i],
            landmarks=arrays["landmarks"][i],
            likelihood=float(arrays["likelihood"][i]),
            certainty=float(arrays["certainty"][i]),
            start=int(arrays["best_hyp"][i]) if "best_hyp" in arrays else None,
            second_build=float(arrays.get("altbuild_max_diff_px", _UNKNOWN)[i]),
            truth=truth,
        )


_UNKNOWN = np.full(100_000, np.nan)


def _photograph(dataset: str, name: str) -> Path:
    folders = (dataset, f"{dataset}_test", dataset.removesuffix("_test"))
    for folder in folders:
        path = shared_folder() / "faces" / folder / name
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name}: not found in {', '.join(folders)}")


@partial(jax.jit, static_argnames="num_starts")
def starts_of(pdm: jaxclnf.PDM, box: jax.Array, num_starts: int) -> jaxclnf.PDMParams:
    """Starts in a box, compiled."""
    return jaxclnf.starts_from_box(pdm, box, num_starts)


_search = jax.jit(fit_starts)
_conclude = jax.jit(conclude_face)


def on_canvas(image: np.ndarray) -> np.ndarray:
    """The image in the corner of a black square; outside counts as black anyway."""
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    if max(image.shape) > _CANVAS:
        raise ValueError(f"image of {image.shape}; expected at most {_CANVAS} pixels")
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def run(
    configuration: str, mode: str, image: np.ndarray, box: np.ndarray
) -> jaxclnf.FitResult:
    """Fits one face as the C++ program would: `fit_face` in its two halves.

    Few programs do for all configurations. Each half is given what it looks at, so that
    configurations with the same experts, or the same parts, share it. Both modes have
    as many starts: of a single one the others are NaN, and end at once.
    """
    model, options = model_of(configuration), options_of(configuration, "multi")
    starts = starts_of(model.pdm, jnp.asarray(box, jnp.float32), options.starts)
    is_run = np.arange(options.starts) < MODES[mode]
    starts = jax.tree.map(
        lambda x: np.where(is_run.reshape(-1, *(1,) * (x.ndim - 1)), x, np.nan), starts
    )
    place = jnp.asarray(on_canvas(image)), np.asarray(image.shape, np.int32)
    whole = dataclasses.replace(model, parts=(), validator=None)
    whole_options = dataclasses.replace(options, use_parts=False)
    found = _search(whole, *place, starts, whole_options)
    rest = dataclasses.replace(model, experts=(), info=jaxclnf.ModelInfo("parts"))
    # The parts have window sizes of their own.
    rest_options = dataclasses.replace(options, window_sizes=())
    return _conclude(rest, *place, found, rest_options)[0]


def compare(configuration: str, mode: str, case: Case) -> Comparison:
    """Fits one face of a reference file."""
    result = run(configuration, mode, case.image, case.box)
    landmarks = np.asarray(result.landmarks)
    known = case.truth is not None
    return Comparison(
        case=case,
        difference=float(np.abs(landmarks - case.landmarks).max()),
        likelihood=float(result.log_likelihood) - case.likelihood,
        certainty=float(result.certainty) - case.certainty,
        same_start=case.start is None or int(result.start) == case.start,
        our_error=error(landmarks, case.truth, "68") if known else np.nan,
        their_error=error(case.landmarks, case.truth, "68") if known else np.nan,
    )
