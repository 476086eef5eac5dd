"""Labelled photographs for training: read, checked face by face, cut out."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxclnf.app.datasets import EYE_CORNERS, read_pts
from jaxclnf.app.errors import ArgumentError, DataError, MediaError, TableError
from jaxclnf.app.media import IMAGE_SUFFIXES, read_image
from jaxclnf.app.train_archives import read_label_arrays
from jaxclnf.app.train_config import DataSource
from jaxclnf.learn.faces import LabelledFaces, tight_box
from jaxclnf.learn.pdm.landmark_fit import FEWEST_LANDMARKS

MARGIN = 0.5
"""What is kept around a face, as a fraction of the larger side of its box."""

FARTHEST = 0.5
"""How far outside the picture a label may lie, as the same fraction."""

MIN_FACE_PX = 12.0
"""Larger side of the smallest box of labels that can be a face, pixels."""

_NUM_LISTED = 20


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What became of the training data."""

    num_used: tuple[int, ...]
    """Faces used, of each source."""
    num_unwanted: tuple[int, ...]
    """Faces that the labels themselves say not to use, of each source."""
    problems: tuple[str, ...]
    """Each file that could not be used, and why."""

    @property
    def summary(self) -> str:
        """The numbers in one line."""
        return (
            f"{sum(self.num_used)} faces, {sum(self.num_unwanted)} marked as not to be"
            f" used, {_problem_count(len(self.problems))}"
        )


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A face that has labels, before its picture has been read."""

    name: str
    image: Path
    landmarks: np.ndarray
    spread: np.ndarray
    source: int


def read_training_faces(
    sources: Sequence[DataSource],
    *,
    keep_going: bool = False,
    max_face_px: float = 240.0,
    num_landmarks: int | None = None,
) -> tuple[LabelledFaces, DataReport]:
    """Reads and checks all labelled photographs.

    Each face keeps its surroundings, `MARGIN` of its size on each side as far as the
    picture goes, and is shrunk if it is large. Only these cuts stay in memory.

    Args:
        sources: Where the data are.
        keep_going: Leaves out what cannot be used, instead of stopping.
        max_face_px: Larger side of a face's box above which it is shrunk to that,
            pixels.
        num_landmarks: Landmarks that every face must have; by default as many as most
            faces have.

    Returns:
        The faces in the order of the sources, and what was left out.

    Raises:
        ArgumentError: A folder or an array is missing.
        TableError: An `.npz` file cannot be read, or its arrays do not fit together.
        DataError: Some data cannot be used, or no face is left; the message names the
            first files.

    Example:
        >>> import tempfile
        >>> from jaxclnf.app.media import write_png
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_png(f"{folder}/a.png", np.zeros((60, 50, 3), np.uint8))
        ...     text = "n_points: 4\\n{\\n20 30\\n34 30\\n34 37\\n20 37\\n}"
        ...     _ = Path(folder, "a.pts").write_text(text)
        ...     faces, report = read_training_faces([DataSource(Path(folder))])
        >>> faces.names, faces.images[0].shape, faces.landmarks[0].tolist()
        (('a.png',), (22, 29), [[7.0, 7.0], [21.0, 7.0], [21.0, 14.0], [7.0, 14.0]])
    """
    entries: list[_Entry] = []
    problems: list[str] = []
    num_unwanted = []
    for index, source in enumerate(sources):
        found, wrong, unwanted = _entries_of(source, index)
        entries += found
        problems += wrong
        num_unwanted.append(unwanted)
    counts = collections.Counter(len(entry.landmarks) for entry in entries)
    expected = num_landmarks or max(counts, key=lambda n: counts[n], default=0)

    used: list[_Entry] = []
    images: list[np.ndarray] = []
    names: dict[str, Path] = {}
    seen: dict[bytes, Path] = {}
    for entry in entries:
        try:
            _check_labels(entry, expected)
            if entry.name in names:
                raise DataError(
                    f"{entry.image}: found a second face named '{entry.name}' (the"
                    f" first: {names[entry.name]}), expected different names: a"
                    " `prefix` tells those of several folders apart"
                )
            image, cut = _cut_out(entry, max_face_px)
            # One of two copies may be held out, to check what the other has taught.
            content = image.tobytes() + cut.landmarks.tobytes()
            first = seen.setdefault(hashlib.sha256(content).digest(), entry.image)
            if first is not entry.image:
                raise DataError(
                    f"{entry.image}: found the same face as in {first}, expected"
                    " each once"
                )
        except (DataError, MediaError) as error:
            problems.append(str(error))
            continue
        names[entry.name] = entry.image
        used.append(cut)
        images.append(image)

    if problems and not keep_going:
        hint = "--keep-going trains without them"
        raise DataError(_listing(problems, hint))
    if not used:
        raise DataError(_listing(problems, "no face is left to train with"))
    per_source = collections.Counter(entry.source for entry in used)
    faces = LabelledFaces(
        names=tuple(names),
        images=tuple(images),
        landmarks=np.stack([entry.landmarks for entry in used]),
        spread=np.stack([entry.spread for entry in used]),
    )
    num_used = tuple(per_source[i] for i in range(len(sources)))
    return faces, DataReport(num_used, tuple(num_unwanted), tuple(problems))


def _problem_count(number: int) -> str:
    return f"{number} problem{'' if number == 1 else 's'}"


def _listing(problems: Sequence[str], hint: str) -> str:
    lines = [f"training data: {_problem_count(len(problems))}; {hint}"]
    lines += [f"  {problem}" for problem in problems[:_NUM_LISTED]]
    if len(problems) > _NUM_LISTED:
        lines.append(f"  and {len(problems) - _NUM_LISTED} more")
    return "\n".join(lines)


def _entries_of(source: DataSource, index: int) -> tuple[list[_Entry], list[str], int]:
    """Faces with labels, problems, and the number of faces not to be used."""
    if not source.images.is_dir():
        raise ArgumentError(f"{source.images}: found no such folder of photographs")
    if source.labels is None:
        entries, known, problems = _beside_images(source, index)
        unwanted = 0
    else:
        entries, known, problems, unwanted = _of_arrays(source, source.labels, index)
    folders = {source.images, *(image.parent for image in known)}
    bare = [
        image
        for folder in sorted(folders)
        for image in _images_in(folder)
        if image not in known
    ]
    problems += [f"{image}: found no labels for this photograph" for image in bare]
    if not entries and not problems and not unwanted:
        problems = [
            f"{source.images}: found no photographs (.jpg, .png, ...), expected them in"
            " this folder, not in folders within it"
        ]
    return entries, problems, unwanted


def _images_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            # macOS keeps what its file systems know of `1.png` in `._1.png`.
            is_hidden = path.name.startswith(".")
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden:
                yield path


def _beside_images(
    source: DataSource, index: int
) -> tuple[list[_Entry], set[Path], list[str]]:
    """Faces with labels, photographs that have a file of labels, and problems."""
    images: dict[str, list[Path]] = collections.defaultdict(list)
    for image in _images_in(source.images):
        images[image.stem].append(image)
    entries, known, problems = [], set(), []
    for path in sorted(source.images.iterdir()):
        if path.suffix.lower() != ".pts" or path.name.startswith("."):
            continue
        beside = images[path.stem]
        known.update(beside)
        if len(beside) != 1:
            found = ", ".join(image.name for image in beside) or "no photograph"
            problems.append(
                f"{path}: found {found} beside it, expected one photograph of that name"
            )
            continue
        image = beside[0]
        try:
            landmarks = read_pts(path)
        except TableError as error:
            problems.append(str(error))
            continue
        name, spread = source.prefix + image.name, np.zeros(len(landmarks))
        entries.append(_Entry(name, image, landmarks, spread, index))
    return entries, known, problems


def _of_arrays(
    source: DataSource, path: Path, index: int
) -> tuple[list[_Entry], set[Path], list[str], int]:
    """Faces to use, photographs of all faces, problems, and how many not to use."""
    arrays = read_label_arrays(source, path)
    names = [str(name) for name in arrays[source.names_key]]
    landmarks = arrays[source.landmarks_key].astype(np.float64)
    spread = np.zeros(landmarks.shape[:2])
    if source.spread_key is not None:
        spread = arrays[source.spread_key].astype(np.float64)
    wanted = np.ones(len(names), bool)
    if source.use_key is not None:
        wanted = arrays[source.use_key]
    chosen, problems = np.flatnonzero(wanted), []
    if source.spread_unit == "percent_interocular":
        corners = list(_eye_corners(source, path, landmarks.shape[1]))
        known = spread != np.inf
        unknown = ~known[:, corners]
        bad = np.any(unknown, axis=1) & np.any(known, axis=1)
        problems = [
            f"{source.images / names[i]}: found no eye corner"
            f" {corners[int(np.argmax(unknown[i]))]}, expected it: spread is in percent"
            f" of the distance of {corners[0]} and {corners[1]}"
            for i in chosen
            if bad[i]
        ]
        chosen = [i for i in chosen if not bad[i]]
        one, other = (landmarks[:, corner] for corner in corners)
        unit = np.linalg.norm(one - other, axis=1)[:, None] / 100
        spread = np.where(np.isposinf(spread), spread, spread * unit)
    entries = [
        _Entry(
            source.prefix + names[i],
            source.images / names[i],
            landmarks[i],
            spread[i],
            index,
        )
        for i in chosen
    ]
    known = {source.images / name for name in names}
    return entries, known, problems, int(np.sum(~wanted))


def _eye_corners(source: DataSource, path: Path, count: int) -> tuple[int, int]:
    """The two landmarks whose distance is the unit of spread."""
    corners = source.eye_corners
    if corners is None:
        if count != 68:
            raise ArgumentError(
                f"{path}: found {count} landmarks and no `eye_corners`, expected them:"
                " spread is in percent of their distance"
            )
        corners = EYE_CORNERS
    if max(corners) >= count:
        raise ArgumentError(
            f"{path}: found {count} landmarks, expected the eye corners"
            f" {corners[0]} and {corners[1]} in them"
        )
    return corners


def _check_labels(entry: _Entry, expected: int) -> None:
    """Refuses labels that are wrong whatever the picture."""
    where = f"{entry.image}: found"
    if len(entry.landmarks) != expected:
        raise DataError(
            f"{where} {len(entry.landmarks)} landmarks, expected {expected}"
        )
    known = ~np.isposinf(entry.spread)
    wrong = known & ~np.isfinite(entry.landmarks).all(axis=1)
    if np.any(wrong):
        index = int(np.argmax(wrong))
        x, y = entry.landmarks[index]
        raise DataError(
            f"{where} labels that are no numbers ({int(wrong.sum())} of {expected}, the"
            f" first ({x}, {y}) at landmark {index}), expected pixels"
        )
    wrong = ~(entry.spread >= 0)
    if np.any(wrong):
        index = int(np.argmax(wrong))
        raise DataError(
            f"{where} spread {entry.spread[index]} at landmark {index}, expected 0 or"
            " more"
        )
    if known.sum() < FEWEST_LANDMARKS:
        raise DataError(
            f"{where} {known.sum()} labels that are known, expected at least"
            f" {FEWEST_LANDMARKS}"
        )
    size = tight_box(entry.landmarks[known])[2:]
    if not np.any(size):
        raise DataError(f"{where} all labels at one place, expected a face")
    if size.max() < MIN_FACE_PX:
        raise DataError(
            f"{where} a face of {size[0]:.1f} x {size[1]:.1f} pixels, expected at least"
            f" {MIN_FACE_PX:g}"
        )


def _cut_out(entry: _Entry, max_face_px: float) -> tuple[np.ndarray, _Entry]:
    """The face's part of the picture, and the labels in it."""
    _, grey = read_image(entry.image)
    known = ~np.isposinf(entry.spread)
    box = tight_box(entry.landmarks[known])
    size = box[2:].max()
    limit = np.array(grey.shape[::-1]) - 1
    low, high = box[:2], box[:2] + box[2:]
    outside = np.maximum(-low, high - limit).max()
    centre = (low + high) / 2
    if outside > FARTHEST * size or np.any((centre < 0) | (centre > limit)):
        raise DataError(
            f"{entry.image}: found labels from ({low[0]:.0f}, {low[1]:.0f}) to"
            f" ({high[0]:.0f}, {high[1]:.0f}), far outside the picture of"
            f" {grey.shape[1]} x {grey.shape[0]} pixels"
        )
    first = np.maximum(np.floor(low - MARGIN * size), 0).astype(int)
    last = np.minimum(np.ceil(high + MARGIN * size), limit).astype(int)
    # A copy, so that the whole picture does not stay in memory.
    image = grey[first[1] : last[1] + 1, first[0] : last[0] + 1].copy()
    landmarks = entry.landmarks - first
    spread = entry.spread
    if size > max_face_px:
        old = np.array(image.shape[::-1])
        new = np.maximum(np.rint(old * (max_face_px / size)), 1).astype(int)
        image = cv2.resize(image, new.tolist(), interpolation=cv2.INTER_AREA)
        # Pixel centres are at integers, so pixel edges, at halves, are what scales.
        landmarks = (landmarks + 0.5) * (new / old) - 0.5
        spread = spread * np.sqrt(np.prod(new / old))
    landmarks = np.where(known[:, None], landmarks, 0.0)
    cut = dataclasses.replace(entry, landmarks=landmarks, spread=spread)
    return np.asarray(image, np.uint8), cut
