"""Reading the reference arrays: their order of coordinates, and the models behind them.

Shapes are stored all x, then all y (then all z); see the data's own README.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxclnf.fitting.model import CLNFModel
from jaxclnf.openface.main_file import read_openface_model
from jaxclnf.shape.pdm import PDM, PDMParams

PDMS = (
    "in_the_wild_68",
    "multi_pie_68",
    "menpo_68",
    "left_eye_28",
    "eye_28",
    "inner_51",
)
"""Names of the reference files, one per published shape model."""

MODELS = {
    "clnf_general": "main_clnf_general.txt",
    "clnf_wild": "main_clnf_wild.txt",
    "clnf_multi_pie": "main_clnf_multi_pie.txt",
    "clm_general": "main_clm_general.txt",
    "svr_general": "main_clm_general.txt",
    "inner": "model_inner/main_clnf_inner.txt",
    "left_eye": "model_eye/main_clnf_synth_left.txt",
    "right_eye": "model_eye/main_clnf_synth_right.txt",
}
"""Main file of each configuration."""


PARTS = {"left_eye_28": "left_eye", "right_eye_28": "right_eye", "inner": "inner"}
"""The configuration of each part."""


def phases(
    golden: Path, configuration: str
) -> Iterator[tuple[dict, bool, dict[str, np.ndarray]]]:
    """Every phase of a trace file: its facts, whether it is rigid, arrays by name."""
    with np.load(golden / f"nu_rlms_{configuration}.npz") as file:
        arrays = dict(file)
    for face, case in enumerate(json.loads(str(arrays["meta"]))["cases"]):
        for facts in case["fits"]:
            prefix = f"f{face}_{facts['model']}_s{facts['scale']}_"
            common = _under(arrays, prefix)
            if "responses" not in common:
                continue
            for name in ("rigid", "nonrigid"):
                yield facts, name == "rigid", {**common, **_under(common, f"{name}_")}


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(prefix): value
        for key, value in arrays.items()
        if key.startswith(prefix)
    }


@cache
def read_model(folder: Path, configuration: str) -> CLNFModel:
    """The float32 model of a configuration."""
    return read_openface_model(folder / MODELS[configuration], np.float32)


def points(stored: np.ndarray, dims: int = 2) -> np.ndarray:
    """`(..., dims * n)` as `(..., n, dims)`."""
    parts = stored.reshape(*stored.shape[:-1], dims, -1)
    return np.moveaxis(parts, -2, -1)


def columns(stored: np.ndarray, dims: int = 2) -> np.ndarray:
    """`(..., dims * n, k)` as `(..., n, dims, k)`."""
    parts = stored.reshape(*stored.shape[:-2], dims, -1, stored.shape[-1])
    return np.moveaxis(parts, -3, -2)


def pdm_from(arrays: np.lib.npyio.NpzFile) -> PDM:
    """The shape model stored in a reference file."""
    return PDM(
        mean_shape=jnp.asarray(points(arrays["mean_shape"], 3)),
        princ_comp=jnp.asarray(columns(arrays["princ_comp"], 3)),
        eigen_values=jnp.asarray(arrays["eigen_values"]),
    )


def params_from(params_global: np.ndarray, params_local: np.ndarray) -> PDMParams:
    """Parameters of one state, or of many along the first axis."""
    make = PDMParams.from_global
    if params_global.ndim == 2:
        make = jax.vmap(make)
    return make(jnp.asarray(params_global), jnp.asarray(params_local))


def largest(difference: np.ndarray | jax.Array) -> float:
    """Largest magnitude; NaN if there is any."""
    return float(np.max(np.abs(np.asarray(difference))))
