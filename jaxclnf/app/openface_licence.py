"""OpenFace's licence: found beside its files, shown, and accepted once by each user."""

import dataclasses
import hashlib
import json
import os
import sys
import time
import uuid
from pathlib import Path

import platformdirs

from jaxclnf.app.errors import ArgumentError, MediaError
from jaxclnf.openface.matrices import read_text

LICENCE_FILES = ("OpenFace-license.txt", "Copyright.txt")
"""Texts that are looked for beside the models and up to four folders further up."""

IN_SHORT = (
    "OpenFace's models are for academic or non-profit, non-commercial research use"
    " only. They may not be passed on, nor may files made from them. The whole licence"
    " is OpenFace-license.txt of https://github.com/TadasBaltrusaitis/OpenFace."
)
"""What is shown where there is no licence text beside the models."""

_LEVELS_UP = 4  # from lib/local/LandmarkDetector/model to the folder around lib


@dataclasses.dataclass(frozen=True)
class Licence:
    """The licence of some model files."""

    text: str
    """What is shown and agreed to."""
    files: tuple[Path, ...] = ()
    """Where it was found; nowhere if it is `IN_SHORT`."""

    @property
    def digest(self) -> str:
        """SHA-256 of the text, by which its acceptance is remembered."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def source(self) -> str:
        """Where it was found, in words."""
        if not self.files:
            return "in short, as there is no text of it beside the models"
        names = ", ".join(file.name for file in self.files)
        return f"{names} in {self.files[0].parent}"


def find_licence(folder: str | os.PathLike[str]) -> Licence:
    """Finds the licence of model files: the nearest folder upwards that has one.

    Args:
        folder: OpenFace's folder of models.

    Returns:
        The licence and notices; `IN_SHORT` if there are none.

    Raises:
        ModelFileError: If a licence file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "OpenFace-license.txt").write_text("For research.\\n")
        ...     Path(folder, "model").mkdir()
        ...     find_licence(Path(folder, "model")).text
        'For research.'
    """
    nearest = Path(folder).resolve()
    for place in (nearest, *nearest.parents[:_LEVELS_UP]):
        files = [place / name for name in LICENCE_FILES]
        files = tuple(file for file in files if os.path.isfile(file))
        if files:
            return Licence(
                "\n\n".join(read_text(file).strip() for file in files), files
            )
    return Licence(IN_SHORT)


def acceptances_file() -> Path:
    """The file that remembers which licences the user has accepted.

    Returns:
        A file of the user's configuration, which need not exist.

    Example:
        >>> acceptances_file().name
        'accepted-licences.json'
    """
    folder = platformdirs.user_config_path("jaxclnf", appauthor=False)
    return folder / "accepted-licences.json"


def accepted_on(licence: Licence) -> str | None:
    """When the user accepted a licence.

    Args:
        licence: The licence.

    Returns:
        The day, `"2026-11-24"`, or `None` if that did not happen.

    Raises:
        MediaError: If the file that remembers it is damaged or cannot be read.

    Example:
        >>> accepted_on(Licence("Nobody has ever seen this.")) is None
        True
    """
    return _acceptances().get(licence.digest)


def ensure_accepted(licence: Licence, *, accept: bool) -> None:
    """Makes sure that the user accepts a licence; shows it and asks where need be.

    Args:
        licence: The licence.
        accept: Whether the user accepted it already, on the command line.

    Raises:
        ArgumentError: If it is not accepted, or nobody can be asked because the input
            is no terminal.
        MediaError: If acceptance cannot be remembered.

    Example:
        >>> try:
        ...     ensure_accepted(Licence("A doctest cannot accept."), accept=False)
        ... except ArgumentError as error:
        ...     print(str(error)[-16:])
        --accept-license
    """
    if accepted_on(licence) is not None:
        return
    if accept:
        print(f"licence accepted by --accept-license: {licence.source}")
    elif not _can_ask():
        raise ArgumentError(
            f"the licence of OpenFace's models ({licence.source}) has not been accepted"
            " and the input is no terminal: read it, then say --accept-license"
        )
    else:
        print(f"{licence.text}\n")
        if not _ask("Do you accept this licence of OpenFace's models? [y/N] "):
            raise ArgumentError("the licence was not accepted, nothing was converted")
    _remember(licence)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ask(question: str) -> bool:
    try:
        answer = input(question)
    except EOFError:  # The input was closed: not an answer, so not a yes.
        return False
    return answer.strip().lower() in ("y", "yes")


def _acceptances() -> dict[str, str]:
    file = acceptances_file()
    if not os.path.lexists(file):
        return {}
    wrong = f"{file}: found %s, expected a list of accepted licences; remove the file"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MediaError(wrong % f"an unreadable file ({error.strerror})") from error
    except ValueError as error:
        raise MediaError(wrong % f"damaged text ({error})") from error
    match content:
        case {"accepted": dict(accepted)}:
            return {str(digest): str(day) for digest, day in accepted.items()}
    raise MediaError(wrong % "something else")


def _remember(licence: Licence) -> None:
    file = acceptances_file()
    accepted = {**_acceptances(), licence.digest: time.strftime("%Y-%m-%d")}
    text = json.dumps({"accepted": accepted}, indent=1) + "\n"
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MediaError(
            f"{file}: the accepted licence cannot be remembered ({error.strerror})"
        ) from error
