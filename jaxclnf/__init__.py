"""Constrained local neural fields in JAX: face landmarks, fitted and certified.

Everything public is here; it is loaded on first use, so that importing the package
loads neither OpenCV nor what you do not need, and touches no device.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jaxclnf.shelf  # noqa: F401 (first of all, as it looks at the clock)

if TYPE_CHECKING:
    from jaxclnf.app.check import check_model as check_model
    from jaxclnf.app.programs import keep_programs as keep_programs
    from jaxclnf.detect.haar import detect_faces as detect_faces
    from jaxclnf.detect.haar import face_squares as face_squares
    from jaxclnf.detect.mtcnn import detect_faces_mtcnn as detect_faces_mtcnn
    from jaxclnf.detect.mtcnn_network import MTCNN as MTCNN
    from jaxclnf.detect.near import detect_near as detect_near
    from jaxclnf.diagnosis.diagnose import diagnose as diagnose
    from jaxclnf.diagnosis.findings import Diagnosis as Diagnosis
    from jaxclnf.diagnosis.findings import Finding as Finding
    from jaxclnf.diagnosis.trace import PhaseTrace as PhaseTrace
    from jaxclnf.diagnosis.trace import trace_phase as trace_phase
    from jaxclnf.diagnosis.verify import Verification as Verification
    from jaxclnf.diagnosis.verify import verify as verify
    from jaxclnf.errors import ModelFileError as ModelFileError
    from jaxclnf.experts.area import areas_of_interest as areas_of_interest
    from jaxclnf.experts.responses import choose_view as choose_view
    from jaxclnf.experts.responses import response_maps as response_maps
    from jaxclnf.experts.types import CCNFExperts as CCNFExperts
    from jaxclnf.experts.types import CENExperts as CENExperts
    from jaxclnf.experts.types import CENLayer as CENLayer
    from jaxclnf.experts.types import ResponseMaps as ResponseMaps
    from jaxclnf.experts.types import SVRExperts as SVRExperts
    from jaxclnf.fitting.fit import fit as fit
    from jaxclnf.fitting.fit import fit_with_trace as fit_with_trace
    from jaxclnf.fitting.hypotheses import starts_from_box as starts_from_box
    from jaxclnf.fitting.joint import JointValidator as JointValidator
    from jaxclnf.fitting.likelihood import LikelihoodValidator as LikelihoodValidator
    from jaxclnf.fitting.many import fit_many as fit_many
    from jaxclnf.fitting.model import BoxCalibration as BoxCalibration
    from jaxclnf.fitting.model import CLNFModel as CLNFModel
    from jaxclnf.fitting.model import CLNFPart as CLNFPart
    from jaxclnf.fitting.model import EarlyTermination as EarlyTermination
    from jaxclnf.fitting.model import ModelInfo as ModelInfo
    from jaxclnf.fitting.options import FitOptions as FitOptions
    from jaxclnf.fitting.pose import Camera as Camera
    from jaxclnf.fitting.pose import head_pose as head_pose
    from jaxclnf.fitting.pose import head_pose_wrt_camera as head_pose_wrt_camera
    from jaxclnf.fitting.pose import landmarks_3d as landmarks_3d
    from jaxclnf.fitting.result import FitResult as FitResult
    from jaxclnf.fitting.result import FitTrace as FitTrace
    from jaxclnf.fitting.result import PartFit as PartFit
    from jaxclnf.fitting.track import follow_face as follow_face
    from jaxclnf.fitting.track import restart_face as restart_face
    from jaxclnf.fitting.track import track_frame as track_frame
    from jaxclnf.fitting.track import track_step as track_step
    from jaxclnf.fitting.track_options import TrackOptions as TrackOptions
    from jaxclnf.fitting.track_state import TrackerState as TrackerState
    from jaxclnf.fitting.track_state import after_follow as after_follow
    from jaxclnf.fitting.track_state import finish_frame as finish_frame
    from jaxclnf.fitting.track_state import needs_detection as needs_detection
    from jaxclnf.fitting.track_state import start_tracking as start_tracking
    from jaxclnf.fitting.validate import CERTAINTY_THRESHOLD as CERTAINTY_THRESHOLD
    from jaxclnf.fitting.validate import Validator as Validator
    from jaxclnf.fitting.validate import validate as validate
    from jaxclnf.learn.faces import LabelledFaces as LabelledFaces
    from jaxclnf.learn.pdm.landmark_shapes import (
        pdm_from_landmarks as pdm_from_landmarks,
    )
    from jaxclnf.learn.pdm.shapes import pdm_from_shapes as pdm_from_shapes
    from jaxclnf.learn.pdm.symmetry import mirror_index as mirror_index
    from jaxclnf.openface.mtcnn_file import load_mtcnn as load_mtcnn
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
    from jaxclnf.solver.certificate import Certificate as Certificate
    from jaxclnf.solver.certificate import certify as certify
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
    "CENExperts": "experts.types",
    "CENLayer": "experts.types",
    "CERTAINTY_THRESHOLD": "fitting.validate",
    "CLNFModel": "fitting.model",
    "CLNFPart": "fitting.model",
    "Camera": "fitting.pose",
    "Certificate": "solver.certificate",
    "Diagnosis": "diagnosis.findings",
    "EarlyTermination": "fitting.model",
    "Finding": "diagnosis.findings",
    "FitOptions": "fitting.options",
    "FitResult": "fitting.result",
    "FitTrace": "fitting.result",
    "JointValidator": "fitting.joint",
    "LabelledFaces": "learn.faces",
    "LikelihoodValidator": "fitting.likelihood",
    "MTCNN": "detect.mtcnn_network",
    "ModelFileError": "errors",
    "ModelInfo": "fitting.model",
    "NURLMSOptions": "solver.options",
    "NURLMSState": "solver.state",
    "PDM": "shape.pdm",
    "PDMParams": "shape.pdm",
    "PartFit": "fitting.result",
    "PhaseTrace": "diagnosis.trace",
    "ResponseMaps": "experts.types",
    "SVRExperts": "experts.types",
    "Status": "status",
    "TrackOptions": "fitting.track_options",
    "TrackerState": "fitting.track_state",
    "Validator": "fitting.validate",
    "Verification": "diagnosis.verify",
    "after_follow": "fitting.track_state",
    "align_shapes": "shape.similarity",
    "areas_of_interest": "experts.area",
    "bounding_box": "shape.pdm",
    "certify": "solver.certificate",
    "check_model": "app.check",
    "choose_view": "experts.responses",
    "clamp": "shape.pdm",
    "curvature": "solver.objective",
    "detect_faces": "detect.haar",
    "detect_faces_mtcnn": "detect.mtcnn",
    "detect_near": "detect.near",
    "diagnose": "diagnosis.diagnose",
    "face_squares": "detect.haar",
    "finish_frame": "fitting.track_state",
    "fit": "fitting.fit",
    "fit_many": "fitting.many",
    "fit_with_trace": "fitting.fit",
    "follow_face": "fitting.track",
    "gradient": "solver.objective",
    "head_pose": "fitting.pose",
    "head_pose_wrt_camera": "fitting.pose",
    "jacobian": "shape.pdm",
    "keep_programs": "app.programs",
    "landmarks_3d": "fitting.pose",
    "load_model": "storage.load",
    "load_mtcnn": "openface.mtcnn_file",
    "mean_shifts": "solver.evidence",
    "mirror_index": "learn.pdm.symmetry",
    "needs_detection": "fitting.track_state",
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
    "restart_face": "fitting.track",
    "retract": "shape.pdm",
    "rigid_jacobian": "shape.pdm",
    "save_model": "storage.npz",
    "shape_3d": "shape.pdm",
    "start_tracking": "fitting.track_state",
    "starts_from_box": "fitting.hypotheses",
    "trace_phase": "diagnosis.trace",
    "track_frame": "fitting.track",
    "track_step": "fitting.track",
    "validate": "fitting.validate",
    "verify": "diagnosis.verify",
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
