"""`jaxclnf fit`: faces in photographs, a table and a picture for each."""

import dataclasses
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from jaxclnf.app.ahead import made_ahead
from jaxclnf.app.drawing import draw_fits
from jaxclnf.app.errors import ArgumentError, MediaError
from jaxclnf.app.face_rows import openface_row
from jaxclnf.app.faces_setup import FaceDetector, FaceSetup
from jaxclnf.app.given_boxes import boxes_of_images
from jaxclnf.app.media import FOLDER_SUFFIXES, make_folder, read_image, write_png
from jaxclnf.app.names import BOXES, SUMMARY, check_name, output_names
from jaxclnf.app.photo_faces import fit_photo_faces, programs_of_photo
from jaxclnf.app.streams import COMPILES, said_if_slow, say_error
from jaxclnf.app.tables import (
    Face,
    faces_of,
    partial_path,
    remove_partial,
    write_boxes,
    write_openface_rows,
    write_rows,
)
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult

_SUMMARY_COLUMNS = (
    "image",
    "faces",
    "converged",
    "trusted",
    "problem",
    "table",
    "overlay",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitCommand(FaceSetup):
    """Finds faces in photographs and fits landmarks to them.

    For each photograph the output folder gets NAME.csv, a table with one row per face
    in the columns of OpenFace's FaceLandmarkImg, and NAME.png, a picture; for all of
    them summary.csv, and boxes.csv with the boxes that were found, which --boxes takes,
    to repeat the fits or to correct a box. Where a name is taken it gets a number:
    NAME_2. A photograph that cannot be used, or has no box in the table of --boxes, is
    reported, the others go on and the exit code is 1. If it is interrupted
    summary.partial.csv has what is done, and the exit code is 130, or 143 or 129 after
    SIGTERM or SIGHUP. OpenFace's own options (-f, -out_dir, -mloc, ...) are understood
    too.
    """

    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="IMAGE...", help_behavior_hint=""),
    ]
    """Photographs, or folders: of them all .jpg, .jpeg,
    .png and .bmp files, by name, but for hidden ones."""
    boxes: Annotated[Path | None, tyro.conf.arg(metavar="CSV")] = None
    """Boxes to start from, instead of looking for faces.
    A table with the columns image, x, y, width, height:
    pixels, tight around the landmarks; image is a path, or
    the file's name alone. One photograph needs no column
    image."""
    picture: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True
    """Leave out the pictures."""
    out: Path = Path("jaxclnf-out")
    """Folder for the results."""
    name: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the photograph's)"),
    ] = None
    """Name of the results of one photograph."""

    def run(self) -> int:
        """Fits all photographs.

        Returns:
            The exit code: 1 if a photograph could not be read, has no box in the table
            of boxes, or its results could not be written, else 0.

        Raises:
            ArgumentError, MediaError, ModelFileError, TableError: Nothing was fitted,
                because of the arguments, the output folder, the model or the boxes.
        """
        self.check()
        images = list(_photographs(self.images))
        if not images:
            raise ArgumentError("fit needs at least one photograph")
        if self.picture:
            _check_out(self.out, self.images)
        if self.name is not None:
            check_name(self.name, len(images), "photograph")
        boxes = None if self.boxes is None else boxes_of_images(self.boxes, images)
        model = self.load()
        work = _Work(self, model, self.fit_options(model), self._detector(model))
        out = make_folder(self.out)
        self.say_what_is_used(model)
        used = [*images, *filter(None, (self.boxes, self.model, self.mtcnn))]
        named = images if self.name is None else [Path(f"{self.name}.csv")]
        names = output_names(named, out, used, pictures=self.picture)

        record = _Record()
        with closing(made_ahead(work.fitted(images, boxes), room=1)) as fitted:
            photos = zip(images, names, fitted, strict=True)
            try:
                all_done = self._write_all(work, photos, out, record)
            except BaseException as error:
                # First of all: who ends us may not wait for what is being fitted.
                record.keep(out, error)
                raise
        try:
            record.write(out)
        except MediaError as error:
            all_done = False
            say_error(error)
        return 0 if all_done else 1

    def _write_all(
        self,
        work: "_Work",
        photos: Iterator[tuple[Path, str, "_Photo | MediaError"]],
        out: Path,
        record: "_Record",
    ) -> bool:
        """Writes what comes of each photograph; tells whether all could be done."""
        all_done, given = True, self.boxes is not None
        for image, name, photo in photos:
            try:
                if isinstance(photo, MediaError):
                    raise photo
                trusted = work.write_table(photo, out / name)
            except MediaError as error:
                all_done = False
                record.rows.append((image, 0, 0, 0, str(error), "", ""))
                say_error(error)
                continue
            faces = photo.faces
            if not given:
                record.boxes[str(image)] = _boxes_of(faces)
            converged = sum(face.converged for face in faces)
            problem = _problem(faces, given)
            if given and not faces:
                all_done = False
                say_error(f"{image}: {problem} in {self.boxes}")
            files = [f"{name}.csv", ""]
            if self.picture:
                try:
                    write_png(f"{out / name}.png", draw_fits(photo.bgr, faces))
                    files[1] = f"{name}.png"
                except MediaError as error:  # the table is there
                    all_done = False
                    problem = "; ".join(filter(None, (problem, str(error))))
                    say_error(error)
            counts = len(faces), converged, trusted
            record.rows.append((image, *counts, problem, *files))
            verdicts = []
            # OpenFace's five steps are seldom enough to converge.
            if self.dialect == "converged":
                verdicts.append(f"{converged} converged")
            if work.model.validator is not None or not verdicts:
                verdicts.append(f"{trusted} trusted")
            written = f"{out / name}.csv" + ", .png" * bool(files[1])
            print(_progress(image, len(faces), ", ".join(verdicts), problem, written))
        return all_done

    def _detector(self, model: CLNFModel) -> FaceDetector | None:
        return self.face_detector(model) if self.boxes is None else None

    def _source_of_boxes(self) -> str:
        if self.boxes is None:
            return super()._source_of_boxes()
        return f"boxes of {self.boxes}"


@dataclasses.dataclass(frozen=True)
class _Record:
    """What is written about all photographs together."""

    rows: list[tuple] = dataclasses.field(default_factory=list)
    """Of the summary."""
    boxes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Those that were found, by photograph."""

    def write(self, out: Path) -> None:
        """Writes the tables; that of boxes only where some were looked for."""
        write_rows(out / f"{SUMMARY}.csv", _SUMMARY_COLUMNS, self.rows)
        if self.boxes:
            write_boxes(out / f"{BOXES}.csv", self.boxes)
        for name in (SUMMARY, BOXES):
            remove_partial(out / f"{name}.csv")

    def keep(self, out: Path, error: BaseException) -> None:
        """Writes what there is under another name, when an exception ends it all."""
        partial = partial_path(out / f"{SUMMARY}.csv")
        with suppress(MediaError):
            if self.rows:
                write_rows(partial, _SUMMARY_COLUMNS, self.rows)
                error.add_note(f"{partial} has the photographs so far")
            if self.boxes:
                write_boxes(partial_path(out / f"{BOXES}.csv"), self.boxes)


class _Photo(NamedTuple):
    """A photograph, and what was found in it."""

    bgr: np.ndarray
    grey: np.ndarray
    boxes: np.ndarray
    faces: Sequence[Face] = ()
    result: FitResult | None = None
    """Of its faces, if there are any."""


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is the same for all photographs."""

    setup: FitCommand
    model: CLNFModel
    options: FitOptions
    detector: FaceDetector | None

    def fitted(
        self, images: Sequence[Path], boxes: Sequence[np.ndarray] | None
    ) -> Generator[_Photo | MediaError, None, None]:
        """Each photograph with its fits, or why there are none."""
        dtype = self.model.pdm.mean_shape.dtype
        known: set[tuple[int, ...]] = set()
        with closing(made_ahead(self._looked_at(images, boxes), room=1)) as photos:
            for photo in photos:
                if isinstance(photo, MediaError) or not len(photo.boxes):
                    yield photo
                    continue
                starts = photo.boxes.astype(dtype)
                needed = programs_of_photo(photo.grey.shape, starts, self.options)
                is_new = not needed <= known
                with said_if_slow(COMPILES) if is_new else nullcontext():
                    found = fit_photo_faces(
                        self.model, photo.grey, starts, self.options
                    )
                    result = jax.tree.map(np.asarray, found)
                known |= needed
                faces = faces_of(photo.boxes, result)
                yield photo._replace(faces=faces, result=result)

    def _looked_at(
        self, images: Sequence[Path], boxes: Sequence[np.ndarray] | None
    ) -> Generator[_Photo | MediaError, None, None]:
        """Each photograph with its boxes, given or found."""
        for i, image in enumerate(images):
            try:
                bgr, grey = read_image(image)
                if boxes is not None:
                    found = boxes[i]
                else:
                    assert self.detector is not None
                    found = self.detector(bgr, grey)
            except MediaError as error:
                yield error
            else:
                yield _Photo(bgr, grey, found)

    def write_table(self, photo: _Photo, target: Path) -> int:
        """Writes the faces that were found; returns how many are to be trusted."""
        rows = [
            openface_row(
                self.model,
                jax.tree.map(lambda x, i=i: x[i], photo.result),
                self.setup.camera(*photo.grey.shape),
                dialect=self.setup.dialect,
                face_id=i,
            )
            for i in range(len(photo.faces))
        ]
        columns = self.setup.columns(self.model, "photo")
        write_openface_rows(f"{target}.csv", columns, rows)
        remove_partial(f"{target}.csv")
        return sum(row.success for row in rows)


def _photographs(paths: Sequence[Path]) -> Iterator[Path]:
    """The photographs themselves, where folders are given."""
    for path in paths:
        if not os.path.isdir(path):  # `Path.is_dir` may raise
            yield path
            continue
        try:
            files = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in FOLDER_SUFFIXES
                and not file.name.startswith(".")
                and not file.is_dir()
            )
        except OSError as error:
            raise ArgumentError(
                f"{path}: the folder cannot be read ({error.strerror})"
            ) from error
        if not files:
            raise ArgumentError(
                f"{path}: found no photograph in this folder, expected files that end"
                f" in {', '.join(FOLDER_SUFFIXES)}"
            )
        yield from files


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    for path in inputs:
        if os.path.isdir(path) and out.is_dir() and path.samefile(out):
            raise ArgumentError(
                f"--out {out}: found a folder whose photographs are fitted; expected"
                " another one, or --no-picture: the next run would take the pictures"
                " that are written there for photographs"
            )


def _boxes_of(faces: Sequence[Face]) -> np.ndarray:
    return np.array([face.box for face in faces], np.float64).reshape(-1, 4)


def _problem(faces: Sequence[Face], were_given: bool) -> str:
    if not faces:
        return "no box given" if were_given else "no face found"
    failed = [face.status for face in faces if face.failed]
    if not failed:
        return ""
    names = ", ".join(sorted({status.name for status in failed}))
    return f"{len(failed)} of {len(faces)} failed: {names}"


def _progress(
    image: Path, num_faces: int, verdict: str, problem: str, written: str
) -> str:
    found = f"{num_faces} face{'' if num_faces == 1 else 's'}"
    text = problem or f"{found}, {verdict}"
    return f"{image}: {text} -> {written}"
