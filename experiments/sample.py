"""Faces and phases that the experiments run on."""

import argparse
import dataclasses
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxclnf
from jaxclnf.app.datasets import faces_of_list, faces_with_pts, interocular_error
from jaxclnf.app.media import read_image
from jaxclnf.status import is_failure

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "docs" / "astronaut.jpg"
PHOTOGRAPH_BOX = (172.0, 80.0, 96.0, 98.0)
"""Around the landmarks of the face in the photograph, pixels."""
SETS = ("lfpw_test", "helen_test", "afw")
MOVE = 0.1
"""Boxes are moved and scaled by up to this share of their size."""


class Face(NamedTuple):
    """A grey picture with a box and, where they are known, landmarks."""

    set_name: str
    name: str
    grey: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray | None

    @property
    def has_truth(self) -> bool:
        """Whether all landmarks are known."""
        return self.landmarks is not None and bool(np.isfinite(self.landmarks).all())

    def error(self, landmarks: np.ndarray) -> float:
        """Mean distance over that of the outer eye corners; NaN if unknown."""
        if self.landmarks is None or not self.has_truth:
            return float("nan")
        return interocular_error(landmarks, self.landmarks)

    def seen_from(self, corner: np.ndarray) -> "Face":
        """The same face, its box and landmarks measured from another pixel."""
        box = np.concatenate([self.box[:2] - corner, self.box[2:]])
        known = self.landmarks is not None
        return self._replace(
            box=box, landmarks=self.landmarks - corner if known else None
        )


class Phase(NamedTuple):
    """One phase of a fit before it is run."""

    face: Face
    """With landmarks as the phase sees them."""
    scale: int
    rigid: bool
    responses: jaxclnf.ResponseMaps
    start: jaxclnf.PDMParams
    options: jaxclnf.NURLMSOptions


def add_arguments(
    parser: argparse.ArgumentParser, models: list[str] | None = None
) -> None:
    """The arguments that all experiments share; by default these models, or all."""
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument(
        "--shared", type=Path, help="folder of annotated photographs and models"
    )
    parser.add_argument("--every", type=int, default=1, help="every N-th face")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results")


def load_faces(shared: Path | None, every: int = 1, move: float = MOVE) -> list[Face]:
    """Annotated photographs, or the one of the documentation with eight boxes.

    Args:
        shared: Folder of the reference data, if there is one.
        every: Take every so manieth.
        move: How far boxes are moved about.

    Returns:
        The faces, always the same.
    """
    rng = np.random.default_rng(0)
    if shared is None:
        grey = read_image(PHOTOGRAPH)[1].astype(np.float32)
        boxes = [moved(np.array(PHOTOGRAPH_BOX), move, rng) for _ in range(8)]
        found = [
            Face("astronaut", f"box {k}", grey, b, None) for k, b in enumerate(boxes)
        ]
        return found[::every]
    faces = []
    for name in SETS:
        faces += [(name, f) for f in faces_with_pts(shared / "faces" / name)]
    reference = shared / "faces" / "openface_reference"
    faces += [
        ("openface_reference", f) for f in faces_of_list(reference / "faces.json")
    ]
    found = []
    for name, face in faces[::every]:
        grey = read_image(face.image)[1].astype(np.float32)
        box = moved(np.asarray(face.box, np.float64), move, rng)
        found.append(
            cropped(Face(name, face.name, grey, box, np.asarray(face.landmarks)))
        )
    return found


def moved(box: np.ndarray, by: float, rng: np.random.Generator) -> np.ndarray:
    """A box moved and scaled at random by up to a share of its size."""
    across, down, size = rng.uniform(-by, by, 3)
    x, y, width, height = box
    return np.array(
        [x + across * width, y + down * height, width * (1 + size), height * (1 + size)]
    )


def cropped(face: Face) -> Face:
    """The same face in a picture that reaches one box beyond the box on every side."""
    x, y, width, height = face.box
    left, top = max(0, int(x - width)), max(0, int(y - height))
    right, bottom = int(x + 2 * width) + 1, int(y + 2 * height) + 1
    grey = np.ascontiguousarray(face.grey[top:bottom, left:right])
    return face._replace(grey=grey).seen_from(np.array([left, top], np.float64))


def load_models(
    shared: Path | None, dtype: type
) -> dict[str, tuple[jaxclnf.CLNFModel, jaxclnf.FitOptions]]:
    """The shipped model, and OpenFace's general and wild ones where they are."""
    plain, wild = jaxclnf.FitOptions(), jaxclnf.FitOptions.wild()
    models = {"shipped": (jaxclnf.load_model(dtype=dtype), plain)}
    if shared is not None:
        folder = shared / "openface-model" / "model"
        for name, options in (("general", plain), ("wild", wild)):
            path = folder / f"main_clnf_{name}.txt"
            models[name] = (jaxclnf.load_model(path, dtype=dtype), options)
    return {
        name: (model.prepared(options.window_sizes), options)
        for name, (model, options) in models.items()
    }


def chosen_models(
    args: argparse.Namespace, dtype: type
) -> Iterator[tuple[str, jaxclnf.CLNFModel, jaxclnf.FitOptions]]:
    """The models that were asked for; says how long each of them took.

    Args:
        args: What `add_arguments` asked for.
        dtype: Of the models' arrays.

    Yields:
        Name, prepared model, options.
    """
    for name, (model, options) in load_models(args.shared, dtype).items():
        if args.models and name not in args.models:
            continue
        begin = time.perf_counter()
        yield name, model, options
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)


_maps = jax.jit(jaxclnf.response_maps, static_argnames=("window_size", "sampling"))
_start = jax.jit(jaxclnf.params_from_box)


def phases(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, face: Face
) -> Generator[Phase, jaxclnf.PDMParams, None]:
    """The phases of a fit, one after the other; send back where each one ended.

    Everything in them is measured from a pixel near the middle of the face, as in
    `fit`: float32 resolves small coordinates better.

    Args:
        model: The model.
        options: For windows and numbers.
        face: The face.

    Yields:
        Each phase; `send` takes the parameters from which the next one starts.
    """
    dtype = model.pdm.mean_shape.dtype
    grey = jnp.asarray(on_canvas(face.grey), dtype)
    params = _start(model.pdm, jnp.asarray(face.box, dtype))
    origin = jnp.round(params.translation)
    params, face = params.moved(-origin), face.seen_from(np.asarray(origin))
    for scale, window in enumerate(options.window_sizes[: len(model.experts)]):
        if not window:
            continue
        experts = model.experts[scale]
        where = origin.astype(jnp.int32)
        responses = _maps(model.pdm, experts, grey, params, window, origin=where)
        at_scale = options.at_scale(experts.patch_scaling, responses.img_from_ref)
        for rigid in (True, False):
            params = yield Phase(face, scale, rigid, responses, params, at_scale)


def on_canvas(grey: np.ndarray) -> np.ndarray:
    """A picture on a square whose side is a power of two: few programs to compile."""
    side = 2 ** int(np.ceil(np.log2(max(*grey.shape, 256))))
    canvas = np.zeros((side, side), grey.dtype)
    canvas[: grey.shape[0], : grey.shape[1]] = grey
    return canvas


def on_one_canvas(faces: list[Face]) -> list[Face]:
    """The same faces in pictures of one size, so that one program fits them all."""
    side = max(on_canvas(face.grey).shape[0] for face in faces)
    room = [(side - f.grey.shape[0], side - f.grey.shape[1]) for f in faces]
    return [
        face._replace(grey=np.pad(face.grey, ((0, down), (0, right))))
        for face, (down, right) in zip(faces, room, strict=True)
    ]


def known_faces(
    shared: Path | None, every: int = 1, move: float = MOVE
) -> tuple[list[Face], str]:
    """Faces whose landmarks are known or will be by `with_truth`, on one canvas.

    Returns:
        The faces, and what to call them in a table.
    """
    faces = load_faces(shared, every, move)
    what = "boxes of the photograph (truth: the fit from its exact box)"
    if shared is not None:
        faces = [face for face in faces if face.has_truth]
        what = "annotated faces"
    moves = f", boxes moved by up to {move:.0%}" if move else ""
    return on_one_canvas(faces), f"{len(faces)} {what}{moves}"


def fit_starts(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, face: Face, count: int
) -> jaxclnf.FitResult:
    """Fits from the first so many starts in the face's box, all to the end.

    Returns:
        One row per start, as NumPy arrays.
    """
    box = np.asarray(face.box, model.pdm.mean_shape.dtype)
    starts = jax.device_get(_starts(model.pdm, box, count))
    return jax.device_get(jaxclnf.fit(model, face.grey, params=starts, options=options))


_starts = jax.jit(jaxclnf.starts_from_box, static_argnums=2)


def likeliest(result: jaxclnf.FitResult) -> int:
    """The row whose fit did not fail and is the most likely."""
    score = np.where(is_failure(result.status), -np.inf, result.log_likelihood)
    return int(np.argmax(score))


def with_truth(
    faces: list[Face], model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions
) -> list[Face]:
    """Annotated faces as they are; the photograph gets the fit from its exact box."""
    if faces[0].landmarks is not None:
        return faces
    exact = faces[0]._replace(box=np.array(PHOTOGRAPH_BOX))
    landmarks = fit_starts(model, options, exact, 1).landmarks[0]
    return [face._replace(landmarks=landmarks) for face in faces]


def save_text(path: Path, text: str) -> None:
    """Writes a file through a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure of matplotlib as PNG through a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)


@partial(jax.jit, static_argnames=("rigid", "solver", "max_steps"))
def run_phase(
    pdm: jaxclnf.PDM,
    responses: jaxclnf.ResponseMaps,
    params: jaxclnf.PDMParams,
    options: jaxclnf.NURLMSOptions,
    *,
    rigid: bool,
    solver: str,
    max_steps: int,
) -> tuple[jaxclnf.NURLMSState, jaxclnf.Certificate]:
    """A phase by some solver, and what the exact kernel says of its end."""
    own = dataclasses.replace(options, solver=solver, max_steps=max_steps)
    end = jaxclnf.nu_rlms(pdm, responses, params, own, rigid=rigid)
    judge = dataclasses.replace(options, solver="newton")
    start = jaxclnf.nu_rlms_init(pdm, responses, end.params, judge, rigid=rigid)
    return end, jaxclnf.certify(pdm, responses, start, judge, rigid=rigid)


def without_sigma(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions
) -> jaxclnf.CLNFModel:
    """A model of CCNF experts whose Sigma couples no pixels: `I / (2 sum alpha)`."""
    experts = tuple(
        dataclasses.replace(scale, beta=jnp.zeros_like(scale.beta))
        if isinstance(scale, jaxclnf.CCNFExperts)
        else scale
        for scale in model.experts
    )
    changed = dataclasses.replace(model, experts=experts)
    return changed.prepared(options.window_sizes)


def peak_width(maps: np.ndarray) -> np.ndarray:
    """How wide the peaks of maps `(..., w, w)` are, pixels of the maps.

    Returns:
        Diameter of the circle that is as large as the part of each map that lies above
        half way from its least value to its largest.
    """
    least, largest = maps.min((-2, -1)), maps.max((-2, -1))
    half = 0.5 * (least + largest)[..., None, None]
    return 2 * np.sqrt(np.sum(maps >= half, axis=(-2, -1)) / np.pi)


def panels(count: int, width: float, share: bool = True) -> tuple[Any, Any]:
    """A figure of some panels side by side, with a common scale of values or not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, count, figsize=(width * count, 3.4), squeeze=False, sharey=share
    )
    return figure, axes[0]
