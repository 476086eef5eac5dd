"""`jaxclnf fit`: faces in photographs, a table and a picture for each."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxclnf.app.drawing import draw_fits
from jaxclnf.app.errors import ArgumentError, MediaError
from jaxclnf.app.media import make_folder, read_image, write_png
from jaxclnf.app.tables import (
    ANY_IMAGE,
    Face,
    faces_of,
    read_boxes,
    write_faces,
    write_rows,
)
from jaxclnf.detect.haar import detect_faces
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.storage.load import DEFAULT_MODEL, load_model

_SUMMARY = "summary"
_SUMMARY_COLUMNS = ("image", "faces", "converged", "problem", "table", "overlay")

_Number = Annotated[
    float | None,
    tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: the preset's)"),
]


@dataclasses.dataclass(frozen=True)
class FitCommand:
    """Finds faces in photographs and fits landmarks to them.

    For each photograph the output folder gets NAME.csv, a table with one row per face,
    and NAME.png, a picture; for all of them summary.csv. Where a name is taken it gets
    a number: NAME_2. A photograph that cannot be used is reported, the others go on and
    the exit code is 1.
    """

    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="IMAGE...", help_behavior_hint=""),
    ]
    """Photographs."""
    model: Annotated[
        str,
        tyro.conf.arg(
            metavar="MODEL", help_behavior_hint="(default: the embedded model)"
        ),
    ] = DEFAULT_MODEL
    """An OpenFace main file, an .npz file of jaxclnf,
    or the name of an embedded model."""
    boxes: Annotated[Path | None, tyro.conf.arg(metavar="CSV")] = None
    """Boxes to start from, instead of looking for faces.
    A table with the columns image, x, y, width, height:
    pixels, tight around the landmarks; image as given
    here, or the file's name alone. One photograph needs
    no column image."""
    out: Path = Path("jaxclnf-out")
    """Folder for the results."""
    min_face: int = 50
    """Smallest face that is looked for, pixels."""
    wild: bool = False
    """Preset for difficult photographs: larger windows,
    landmarks weighted by confidence."""
    window_sizes: Annotated[
        tuple[int, ...] | None,
        tyro.conf.arg(metavar="INT...", help_behavior_hint="(default: the preset's)"),
    ] = None
    """Side of the response maps at each scale, odd; 0 skips the scale."""
    max_steps: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the preset's)"),
    ] = None
    """Step limit of each phase."""
    sigma: _Number = None
    """Bandwidth of the kernel density estimate, reference pixels."""
    reg_factor: _Number = None
    """Weight of the shape prior, px^2."""
    weight_factor: _Number = None
    """Weight of each landmark per unit of its expert's confidence; 0: all weigh 1."""

    @property
    def options(self) -> FitOptions:
        """The preset with what was asked for instead.

        Raises:
            ArgumentError: A number is out of its range.
        """
        preset = FitOptions.wild() if self.wild else FitOptions()
        names = ("window_sizes", "max_steps", "sigma", "reg_factor", "weight_factor")
        asked = {name: getattr(self, name) for name in names}
        asked = {name: value for name, value in asked.items() if value is not None}
        _check(asked)
        return dataclasses.replace(preset, **asked)

    def run(self) -> int:
        """Fits all photographs.

        Returns:
            The exit code: 1 if a photograph could not be read or its results not
            written, else 0.

        Raises:
            ArgumentError, MediaError, ModelFileError, TableError: Nothing was fitted,
                because of the arguments, the output folder, the model or the boxes.
        """
        if not self.images:
            raise ArgumentError("fit needs at least one photograph")
        if self.min_face < 1:
            raise ArgumentError(f"--min-face {self.min_face}: must be 1 or more")
        options = self.options
        boxes = (
            None if self.boxes is None else _boxes_of_images(self.boxes, self.images)
        )
        model = load_model(self.model).prepared(options.window_sizes)
        out = make_folder(self.out)
        used = [*self.images, *filter(None, (self.boxes, self.model))]
        names = output_names(self.images, out, used)

        rows, all_done = [], True
        for i, (image, name) in enumerate(zip(self.images, names, strict=True)):
            try:
                given = None if boxes is None else boxes[i]
                faces = self._fit_photo(model, options, image, given, out / name)
            except MediaError as error:
                all_done = False
                rows.append((image, 0, 0, str(error), "", ""))
                print(f"jaxclnf: {error}", file=sys.stderr)
                continue
            converged = sum(face.converged for face in faces)
            problem = _problem(faces, given is not None)
            rows.append(
                (image, len(faces), converged, problem, f"{name}.csv", f"{name}.png")
            )
            print(_progress(image, len(faces), converged, problem, out / name))
        write_rows(out / f"{_SUMMARY}.csv", _SUMMARY_COLUMNS, rows)
        return 0 if all_done else 1

    def _fit_photo(
        self,
        model: CLNFModel,
        options: FitOptions,
        image: Path,
        boxes: np.ndarray | None,
        target: Path,
    ) -> list[Face]:
        bgr, grey = read_image(image)
        if boxes is None:
            calibration = model.box_calibration
            boxes = detect_faces(grey, calibration=calibration, min_size=self.min_face)
        faces = []
        if len(boxes):
            starts = boxes.astype(model.pdm.mean_shape.dtype)
            faces = faces_of(boxes, fit(model, grey, starts, options=options))
        write_faces(f"{target}.csv", faces, model.pdm.num_landmarks)
        write_png(f"{target}.png", draw_fits(bgr, faces))
        return faces


def output_names(
    images: Sequence[Path], out: Path, used: Sequence[str | os.PathLike[str]] = ()
) -> list[str]:
    """Names for the results of some photographs, without their suffix.

    Args:
        images: The photographs, in order.
        out: Folder of the results.
        used: Files that no result may replace.

    Returns:
        Each photograph's own name without its suffix; with `_2`, `_3`, ... where an
        earlier photograph, the summary or a file of `used` has it already. Upper and
        lower case count as the same, as on some systems they are.

    Example:
        >>> from pathlib import Path
        >>> output_names([Path("a/me.jpg"), Path("b/me.png")], Path("out"))
        ['me', 'me_2']
    """
    protected = {_key(Path(path)) for path in used}
    taken = {_SUMMARY}
    names = []
    for image in images:
        name, count = image.stem, 1
        while name.casefold() in taken or any(
            _key(out / f"{name}.{suffix}") in protected for suffix in ("csv", "png")
        ):
            count += 1
            name = f"{image.stem}_{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _key(path: Path) -> str:
    return os.path.realpath(path).casefold()


def _check(options: dict) -> None:
    sizes = options.get("window_sizes")
    if sizes is not None and (
        not any(sizes) or any(size < 0 or (size and size % 2 == 0) for size in sizes)
    ):
        text = " ".join(map(str, sizes)) or "(none)"
        raise ArgumentError(
            f"--window-sizes {text}: must be odd numbers, or 0 to skip a scale, and not"
            " all 0"
        )
    for name, low, is_allowed in (
        ("max_steps", "1 or more", lambda x: x >= 1),
        ("sigma", "above 0", lambda x: x > 0),
        ("reg_factor", "0 or more", lambda x: x >= 0),
        ("weight_factor", "0 or more", lambda x: x >= 0),
    ):
        value = options.get(name)
        if value is not None and not (math.isfinite(value) and is_allowed(value)):
            raise ArgumentError(
                f"--{name.replace('_', '-')} {value}: must be a number, {low}"
            )


def _boxes_of_images(table: Path, images: Sequence[Path]) -> list[np.ndarray]:
    """The boxes of each photograph; no rows where the table has none."""
    given = read_boxes(table)
    if ANY_IMAGE in given:
        if len(set(images)) > 1:
            raise ArgumentError(
                f"{table}: has no column 'image', which {len(images)} photographs need"
            )
        return [given[ANY_IMAGE]] * len(images)

    keys = []
    for image in images:
        # The whole path comes first: names may repeat from folder to folder.
        key = str(image) if str(image) in given else image.name
        others = {
            str(i) for i in images if i.name == image.name and str(i) not in given
        }
        if key in given and key != str(image) and len(others) > 1:
            raise ArgumentError(
                f"{table}: '{image.name}' could mean {' or '.join(sorted(others))};"
                " give the whole path in the column 'image'"
            )
        keys.append(key)
    if unused := [name for name in given if name not in keys]:
        print(
            f"jaxclnf: {table}: boxes of {len(unused)} other images are left out, the"
            f" first is '{unused[0]}'",
            file=sys.stderr,
        )
    return [given.get(key, np.empty((0, 4))) for key in keys]


def _problem(faces: Sequence[Face], were_given: bool) -> str:
    if not faces:
        return "no box given" if were_given else "no face found"
    failed = [face.status for face in faces if face.failed]
    if not failed:
        return ""
    names = ", ".join(sorted({status.name for status in failed}))
    return f"{len(failed)} of {len(faces)} failed: {names}"


def _progress(
    image: Path, num_faces: int, num_converged: int, problem: str, target: Path
) -> str:
    found = f"{num_faces} face{'' if num_faces == 1 else 's'}"
    text = problem or f"{found}, {num_converged} converged"
    return f"{image}: {text} -> {target}.csv, .png"
