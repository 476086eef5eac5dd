"""OpenFace's main files: which shape model, experts and parts make up a model.

A main file names a detector file (shape model and experts), the main files of parts,
and things that only OpenFace needs. One directive per line, paths relative to the file.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from jaxclnf.errors import ModelFileError
from jaxclnf.experts.types import CENExperts, PatchExperts
from jaxclnf.fitting.model import CLNFModel, CLNFPart, EarlyTermination, ModelInfo
from jaxclnf.fitting.validate import Validator
from jaxclnf.openface.ccnf_file import read_ccnf
from jaxclnf.openface.cen_file import read_cen, read_early_termination
from jaxclnf.openface.directives import Directive, named, only, read_directives
from jaxclnf.openface.licence import find_licence
from jaxclnf.openface.pdm_file import read_pdm
from jaxclnf.openface.svr_file import read_svr
from jaxclnf.openface.triangulation_file import read_triangulations
from jaxclnf.openface.validator_file import read_validator
from jaxclnf.shape.pdm import PDM


def read_openface_model(
    path: str | os.PathLike[str], dtype: DTypeLike = np.float32
) -> CLNFModel:
    """Reads a complete model of OpenFace 2, parts included.

    Args:
        path: A main file (`main_clnf_general.txt`) or a detector file
            (`clnf_general.txt`).
        dtype: Floating type of the arrays; float64 needs JAX's x64 mode.

    Returns:
        The model, without Sigma matrices. Its licence is the text found beside the
        files, or further up (`find_licence`).

    Raises:
        ModelFileError: If a file is missing, damaged, or does not fit the others.

    Mirrors:
        CLNF::Read. Of experts of several families, OpenFace's choice is made: CEN
        before CCNF before SVR. Early termination is read for CEN experts only.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        ...     _ = file.write(b"Hello")
        ...     file.flush()
        ...     try:
        ...         read_openface_model(file.name)
        ...     except ValueError as error:
        ...         print(str(error).removeprefix(file.name)[:29])
        , line 1: found 'Hello', expe
    """
    return _read_model(Path(path), dtype, ())


def read_openface_pdm(
    path: str | os.PathLike[str], dtype: DTypeLike = np.float32
) -> PDM:
    """Reads only the shape model that a main or detector file names.

    Unlike `read_openface_model` it does not look at the experts, so their family does
    not matter and they may be missing.

    Args:
        path: A main or detector file.
        dtype: Floating type of the arrays.

    Returns:
        The shape model.

    Raises:
        ModelFileError: If a file is missing or damaged.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector = pathlib.Path(folder, "clnf_tiny.txt")
        ...     _ = detector.write_text("PDM pdm.txt")
        ...     pdm_text = "3 1 6 0 0 1  3 1 6 1 0 0  1 1 6 4"
        ...     _ = pathlib.Path(folder, "pdm.txt").write_text(pdm_text)
        ...     read_openface_pdm(detector).num_landmarks
        1
    """
    _, detector = _main_and_detector(Path(path))
    return read_pdm(only(detector, "PDM").target(), dtype)


def _read_model(path: Path, dtype: DTypeLike, outer: tuple[Path, ...]) -> CLNFModel:
    main, detector = _main_and_detector(path)
    # Before anything else: the usual copy of OpenFace lacks the files of CEN experts.
    for directive in named(detector, "PatchesCEN"):
        directive.target()
    pdm = read_pdm(only(detector, "PDM").target(), dtype)
    here = (*outer, path.resolve())
    parts = [
        _read_part(directive, pdm, dtype, here)
        for directive in named(main, "LandmarkDetector_part")
    ]
    experts = _read_experts(detector, pdm, dtype)
    return CLNFModel(
        pdm=pdm,
        experts=experts,
        parts=tuple(parts),
        triangulations=_read_triangles(detector, pdm),
        early_termination=_read_early_termination(detector, experts, dtype),
        validator=_read_validator(main, pdm, dtype),
        info=ModelInfo(
            name=path.stem.removeprefix("main_"),
            licence=find_licence(path.resolve().parent).text,
            provenance=f"OpenFace 2.x model file {path.name}",
        ),
    )


def _main_and_detector(path: Path) -> tuple[list[Directive], list[Directive]]:
    directives = read_directives(path)
    if directives[0].is_detector:
        return [], directives
    detector_file = only(directives, "LandmarkDetector").target()
    detector = read_directives(detector_file)
    if not detector[0].is_detector:
        raise detector[0].error("a main file", "a detector file, which begins with PDM")
    return directives, detector


def _read_experts(
    detector: Sequence[Directive], pdm: PDM, dtype: DTypeLike
) -> tuple[PatchExperts, ...]:
    families = {
        "PatchesCEN": read_cen,
        "PatchesCCNF": read_ccnf,
        "PatchesIntensity": read_svr,
    }
    present = [name for name in families if named(detector, name)]
    if not present:
        raise ModelFileError(
            f"{detector[0].file}: found no experts, expected one of"
            f" {', '.join(families)} once per scale"
        )
    directives, read = named(detector, present[0]), families[present[0]]
    experts = [read(directive.target(), dtype) for directive in directives]
    for directive, scale in zip(directives, experts, strict=True):
        num_landmarks = scale.visibility.shape[1]
        if num_landmarks != pdm.num_landmarks:
            raise directive.error(
                f"experts for {num_landmarks} landmarks",
                f"{pdm.num_landmarks}, as in the PDM",
            )
    return tuple(experts)


def _read_early_termination(
    detector: Sequence[Directive], experts: tuple[PatchExperts, ...], dtype: DTypeLike
) -> EarlyTermination | None:
    if not isinstance(experts[0], CENExperts) or not named(
        detector, "EarlyTermination"
    ):
        return None
    file = only(detector, "EarlyTermination").target()
    return read_early_termination(file, len(experts[0].view_centers), dtype)


def _read_triangles(
    detector: Sequence[Directive], pdm: PDM
) -> tuple[Int[Array, "_ 3"], ...]:
    directives = named(detector, "Triangulations")
    if not directives:
        return ()
    directive = only(detector, "Triangulations")
    triangulations = read_triangulations(directive.target())
    largest = max(int(triangles.max()) for triangles in triangulations)
    if largest >= pdm.num_landmarks:
        raise directive.error(
            f"a triangle with landmark {largest}", f"less than {pdm.num_landmarks}"
        )
    return triangulations


def _read_validator(
    main: Sequence[Directive], pdm: PDM, dtype: DTypeLike
) -> Validator | None:
    if not named(main, "DetectionValidator"):
        return None
    file = only(main, "DetectionValidator").target()
    return read_validator(file, dtype, num_landmarks=pdm.num_landmarks)


def _read_part(
    directive: Directive, pdm: PDM, dtype: DTypeLike, outer: tuple[Path, ...]
) -> CLNFPart:
    words = directive.rest.split()
    if len(words) < 4 or len(words) % 2:
        raise directive.error(
            f"{len(words)} words", "a main file, a name, and pairs of landmark indices"
        )
    file = directive.target(words[0])
    if file.resolve() in outer:
        raise directive.error(f"{words[0]!r}, which this is a part of", "another file")
    model = _read_model(file, dtype, outer)
    return CLNFPart(
        model=model,
        main_index=_indices(directive, words[2::2], pdm.num_landmarks),
        part_index=_indices(directive, words[3::2], model.pdm.num_landmarks),
        name=words[1],
    )


def _indices(
    directive: Directive, words: Sequence[str], num_landmarks: int
) -> Int[Array, " q"]:
    for word in words:
        if not (word.isdecimal() and len(word) < 9 and int(word) < num_landmarks):
            raise directive.error(
                f"landmark {word[:20]!r}", f"an index from 0 to {num_landmarks - 1}"
            )
    return jax.device_put(np.array([int(word) for word in words], np.int32))
