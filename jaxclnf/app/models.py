"""`jaxclnf models`: which models there are; OpenFace's, checked and converted."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.openface_licence import accepted_on, ensure_accepted
from jaxclnf.app.streams import say_error
from jaxclnf.errors import ModelFileError
from jaxclnf.openface.licence import find_licence
from jaxclnf.openface.release import (
    FOLDER_VARIABLE,
    FileState,
    Release,
    ReleaseFile,
    check_files,
    find_model_folder,
    read_release,
    standard_folder,
)
from jaxclnf.storage.load import embedded_models
from jaxclnf.storage.openface_cache import (
    cache_folder,
    conversion_file,
    conversions,
    convert_model,
    is_converted,
)

ALL = "all"
"""Stands for every model whose files are there."""


@dataclasses.dataclass(frozen=True)
class ModelsCommand:
    """Shows which models there are; checks and converts those of OpenFace.

    OpenFace's models are looked for in the folder of --from, else in
    $OPENFACE_MODELS_DIR/2.2.0, else in OpenFaceModels/2.2.0 among the user's data.
    Their files are compared with the published ones; the exit code is 1 if a file is
    wrong or a model lacks some of its files, but for those that are published apart.
    Nothing is downloaded. A converted model is known by its name: jaxclnf fit --model
    clnf_general.
    """

    source: Annotated[
        Path | None,
        tyro.conf.arg(
            name="from",
            metavar="FOLDER",
            help_behavior_hint="(default: see above)",
        ),
    ] = None
    """OpenFace's folder 'model', or one that contains it."""
    convert: Annotated[
        tuple[str, ...] | None,
        tyro.conf.arg(metavar="NAME...", help_behavior_hint=""),
    ] = None
    """Models to convert into files of jaxclnf in the user's
    cache ($JAXCLNF_CACHE_DIR names another folder);
    'all' for all that are there."""
    accept_license: bool = False
    """You have read OpenFace's licence and accept it.
    Otherwise it is shown and you are asked, once."""

    def run(self) -> int:
        """Shows or converts.

        Returns:
            The exit code: 1 if a model is damaged or could not be converted while
            others could, else 0.

        Raises:
            ArgumentError, MediaError, ModelFileError: Nothing could be done, because of
                the arguments, the folder, its files, the licence or the cache.
        """
        if self.accept_license and self.convert is None:
            raise ArgumentError("--accept-license: only together with --convert")
        release = read_release()
        base = self.source or standard_folder(release.version)
        if self.source is not None and not os.path.isdir(self.source):
            raise ArgumentError(f"--from {self.source}: there is no such folder")
        if self.convert is not None:
            _check_names(release, self.convert)
        folder = find_model_folder(base, release)
        if folder is not None and self.convert is not None:
            return _convert(release, folder, self.convert, accept=self.accept_license)
        if folder is None and (self.source is not None or self.convert is not None):
            raise ArgumentError(
                f"{base}: found no models of OpenFace {release.version}, expected"
                " its folder 'model' or one that contains it; --from FOLDER or"
                f" {FOLDER_VARIABLE} names another"
            )
        states = {} if folder is None else _check(release, [*release.models], folder)
        print("\n".join(_overview(release, base, folder, states)))
        return 1 if any(map(_is_broken, _surveys(release, states))) else 0


@dataclasses.dataclass(frozen=True)
class _Survey:
    """What was found of one model's files."""

    name: str
    files: tuple[ReleaseFile, ...]
    states: tuple[FileState, ...]

    @property
    def missing(self) -> list[ReleaseFile]:
        pairs = zip(self.files, self.states, strict=True)
        return [file for file, state in pairs if state.is_missing]

    @property
    def wrong(self) -> list[str]:
        return [s.problem for s in self.states if s.problem and not s.is_missing]

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.wrong)

    @property
    def in_words(self) -> str:
        if self.is_complete:
            size = sum(file.size for file in self.files)
            return f"complete, {len(self.files)} files, {size / 1e6:.1f} MB"
        words = []
        if missing := self.missing:
            apart = all(file.is_apart for file in missing)
            words.append(
                f"{len(missing)} of {len(self.files)} files missing, first"
                f" {missing[0].path}"
                + ", which OpenFace publishes apart from its sources"
                * apart
            )
        if wrong := self.wrong:
            words.append(f"{len(wrong)} of {len(self.files)} files wrong")
        return "; ".join(words)


def _surveys(release: Release, states: Mapping[str, FileState]) -> list[_Survey]:
    """The models all of whose files were looked at."""
    return [
        _Survey(name, files, tuple(states[file.path] for file in files))
        for name, files in release.models.items()
        if all(file.path in states for file in files)
    ]


def _check(
    release: Release, names: Sequence[str], folder: Path
) -> dict[str, FileState]:
    files = {file.path: file for name in names for file in release.models[name]}
    return check_files(folder, files.values())


def _is_broken(survey: _Survey) -> bool:
    """Whether a model is there, but not as it should be."""
    is_there = survey.files[0] not in survey.missing
    lacks = any(not file.is_apart for file in survey.missing)
    return bool(survey.wrong) or (is_there and lacks)


def _overview(
    release: Release, base: Path, folder: Path | None, states: Mapping[str, FileState]
) -> Iterator[str]:
    yield "embedded"
    for name, file in sorted(embedded_models().items()):
        yield _row(name, str(file))
    yield f"OpenFace {release.version}"
    if folder is None:
        yield _row("files", f"none in {base}")
    else:
        licence = find_licence(folder)
        day = accepted_on(licence)
        yield _row("files", str(folder))
        yield _row("licence", licence.source)
        yield _row("", f"accepted on {day}" if day else "not accepted yet")
        surveys = _surveys(release, states)
        for survey in surveys:
            yield _row(survey.name, survey.in_words)
        for problem in sorted({p for survey in surveys for p in survey.wrong}):
            yield _row("wrong", problem)
    yield "converted from OpenFace"
    yield _row("cache", str(cache_folder()))
    yield from _converted(release)


def _converted(release: Release) -> Iterator[str]:
    found = conversions()
    for name, files in release.models.items():
        if conversion_file(name, files) in {c.file for c in found}:
            yield _row(name, "converted")
        elif any(c.name == name for c in found):
            yield _row(name, "out of date: convert it again")
        else:
            yield _row(name, "not converted")


def _row(title: str, text: str) -> str:
    return f"  {title:16}{text}".rstrip()


def _check_names(release: Release, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in (ALL, *release.models)]
    if unknown or not names:
        found = ", ".join(map(repr, unknown)) or "no name"
        raise ArgumentError(
            f"--convert: found {found}, expected {ALL!r}, or some of"
            f" {', '.join(release.models)}"
        )


def _convert(
    release: Release, folder: Path, names: Sequence[str], *, accept: bool
) -> int:
    wanted = [*release.models] if ALL in names else [*dict.fromkeys(names)]
    surveys = _surveys(release, _check(release, wanted, folder))
    failed = []
    for survey in surveys:
        if survey.is_complete:
            continue
        if ALL in names and not _is_broken(survey):
            print(f"{survey.name}: left out, {survey.in_words}")
            continue
        failed.append(survey.name)
        for problem in survey.wrong or [f"{folder}: {survey.in_words}"]:
            say_error(f"{survey.name}: {problem}")
    ready = [survey for survey in surveys if survey.is_complete]
    if not ready:
        raise ArgumentError(f"{folder}: found no complete model to convert")

    todo = [s for s in ready if not is_converted(s.name, s.files)]
    licence = find_licence(folder)
    if todo:
        ensure_accepted(licence, accept=accept)
    num_done = len(ready) - len(todo)
    for survey in ready:
        if survey not in todo:
            file = conversion_file(survey.name, survey.files)
            print(f"{survey.name}: already converted -> {file}")
            continue
        try:
            file = convert_model(survey.name, folder, survey.files, licence.text)
        except ModelFileError as error:
            failed.append(survey.name)
            say_error(f"{survey.name}: {error}")
        else:
            num_done += 1
            print(f"{survey.name}: converted -> {file}")
    if not num_done:
        return 2
    return 1 if failed else 0
