"""OpenFace's licence: shown, and accepted once by each user."""

import json
import os
import sys
import time
from pathlib import Path

import platformdirs

from jaxclnf.app.errors import ArgumentError, MediaError
from jaxclnf.openface.licence import Licence
from jaxclnf.whole_files import write_whole


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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text.encode())
    except OSError as error:
        raise MediaError(
            f"{file}: the accepted licence cannot be remembered ({error.strerror})"
        ) from error
