"""Constrained local neural fields in JAX: face landmarks, fitted and certified.

Everything public is here; it is loaded on first use, so that importing the package
loads neither OpenCV nor what you do not need, and touches no device.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxclnf.app.check import check_model as check_model
    from jaxclnf.detect.haar import detect_faces as detect_faces
    from jaxclnf.detect.haar import face_squares as face_squares
    from jaxclnf.errors import ModelFileError as ModelFileError
    from jaxclnf.experts.area import areas_of_interest as areas_of_interest
    from jaxclnf.experts.responses import choose_view as choose_view
    from jaxclnf.experts.responses import response_maps as response_maps
    from jaxclnf.experts.types import CCNFExperts as CCNFExperts
    from jaxclnf.experts.types import ResponseMaps as ResponseMaps
    from jaxclnf.experts.types import SVRExperts as SVRExperts
    from jaxclnf.fitting.fit import fit as fit
    from jaxclnf.fitting.fit import fit_with_trace as fit_with_trace
    from jaxclnf.fitting.model import BoxCalibration as BoxCalibration
    from jaxclnf.fitting.model import CLNFModel as CLNFModel
    from jaxclnf.fitting.model import CLNFPart as CLNFPart
    from jaxclnf.fitting.model import ModelInfo as ModelInfo
    from jaxclnf.fitting.options import FitOptions as FitOptions
    from jaxclnf.fitting.result import FitResult as FitResult
    from jaxclnf.fitting.result import FitTrace as FitTrace
    from jaxclnf.learn.faces import LabelledFaces as LabelledFaces
    from jaxclnf.learn.pdm.landmark_shapes import (
        pdm_from_landmarks as pdm_from_landmarks,
    )
    from jaxclnf.learn.pdm.shapes import pdm_from_shapes as pdm_from_shapes
    from jaxclnf.learn.pdm.symmetry import mirror_index as mirror_index
    from jaxclnf.shape.initial import params_from_box as params_from_box
    from jaxclnf.shape.initial import params_from_landmarks as params_from_landmarks
    from jaxclnf.shape.pdm import PDM as PDM
    from jaxclnf.shape.pdm import PDMParams as PDMParams
    from jaxclnf.shape.pdm import bounding_box as bounding_box
    from jaxclnf.shape.pdm import clamp as clamp
    from jaxclnf.shape.pdm import jacobian as jacobian
    from jaxclnf.shape.pdm import project as project
    from jaxclnf.shape.pdm import retract as retract
    from jaxclnf.shape.pdm import rigid_jacobian as rigid_jacobian
    from jaxclnf.shape.pdm import shape_3d as shape_3d
    from jaxclnf.shape.similarity import align_shapes as align_shapes
    from jaxclnf.solver.evidence import mean_shifts as mean_shifts
    from jaxclnf.solver.loop import nu_rlms as nu_rlms
    from jaxclnf.solver.loop import nu_rlms_init as nu_rlms_init
    from jaxclnf.solver.loop import nu_rlms_step as nu_rlms_step
    from jaxclnf.solver.loop import nu_rlms_with_trace as nu_rlms_with_trace
    from jaxclnf.solver.objective import curvature as curvature
    from jaxclnf.solver.objective import gradient as gradient
    from jaxclnf.solver.objective import objective as objective
    from jaxclnf.solver.options import NURLMSOptions as NURLMSOptions
    from jaxclnf.solver.state import NURLMSState as NURLMSState
    from jaxclnf.status import Status as Status
    from jaxclnf.storage.load import load_model as load_model
    from jaxclnf.storage.npz import save_model as save_model

_HOME = {
    "BoxCalibration": "fitting.model",
    "CCNFExperts": "experts.types",
    "CLNFModel": "fitting.model",
    "CLNFPart": "fitting.model",
    "FitOptions": "fitting.options",
    "FitResult": "fitting.result",
    "FitTrace": "fitting.result",
    "LabelledFaces": "learn.faces",
    "ModelFileError": "errors",
    "ModelInfo": "fitting.model",
    "NURLMSOptions": "solver.options",
    "NURLMSState": "solver.state",
    "PDM": "shape.pdm",
    "PDMParams": "shape.pdm",
    "ResponseMaps": "experts.types",
    "SVRExperts": "experts.types",
    "Status": "status",
    "align_shapes": "shape.similarity",
    "areas_of_interest": "experts.area",
    "bounding_box": "shape.pdm",
    "check_model": "app.check",
    "choose_view": "experts.responses",
    "clamp": "shape.pdm",
    "curvature": "solver.objective",
    "detect_faces": "detect.haar",
    "face_squares": "detect.haar",
    "fit": "fitting.fit",
    "fit_with_trace": "fitting.fit",
    "gradient": "solver.objective",
    "jacobian": "shape.pdm",
    "load_model": "storage.load",
    "mean_shifts": "solver.evidence",
    "mirror_index": "learn.pdm.symmetry",
    "nu_rlms": "solver.loop",
    "nu_rlms_init": "solver.loop",
    "nu_rlms_step": "solver.loop",
    "nu_rlms_with_trace": "solver.loop",
    "objective": "solver.objective",
    "params_from_box": "shape.initial",
    "params_from_landmarks": "shape.initial",
    "pdm_from_landmarks": "learn.pdm.landmark_shapes",
    "pdm_from_shapes": "learn.pdm.shapes",
    "project": "shape.pdm",
    "response_maps": "experts.responses",
    "retract": "shape.pdm",
    "rigid_jacobian": "shape.pdm",
    "save_model": "storage.npz",
    "shape_3d": "shape.pdm",
}

__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = version("jaxclnf")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxclnf' has no attribute {name!r}")
    value = getattr(import_module(f"jaxclnf.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
