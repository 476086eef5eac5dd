"""The command `jaxclnf`: one subcommand per task."""

import contextlib
import dataclasses
import errno
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import tyro

from jaxclnf.app.errors import AppError, with_notes
from jaxclnf.app.openface_options import translate
from jaxclnf.app.programs import keep_programs
from jaxclnf.app.signals import SignalEnd, interrupted_by_signals
from jaxclnf.app.streams import say_error
from jaxclnf.errors import ModelFileError

COMMANDS = {
    "fit": (
        "jaxclnf.app.fit:FitCommand",
        "Finds faces in photographs and fits landmarks to them.",
    ),
    "track": (
        "jaxclnf.app.track:TrackCommand",
        "Follows faces through videos.",
    ),
    "check": (
        "jaxclnf.app.check:CheckCommand",
        "Checks a model's analytic derivatives against automatic ones and differences.",
    ),
    "train": (
        "jaxclnf.app.train:TrainCommand",
        "Learns a model from labelled photographs.",
    ),
    "info": ("jaxclnf.app.info:InfoCommand", "Shows what is in a model."),
    "warm": (
        "jaxclnf.app.warm:WarmCommand",
        "Compiles ahead what fit and track will need, with the same arguments.",
    ),
    "models": (
        "jaxclnf.app.models:ModelsCommand",
        "Shows which models there are; checks and converts those of OpenFace.",
    ),
}
"""Where each subcommand lives, and what it does in one sentence.

A subcommand is a frozen dataclass: its fields are the arguments, and its method
`run() -> int` does the work and returns the exit code.
"""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a disk to which the output is redirected."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments, OpenFace's options among them; those of the process by
            default.

    Returns:
        The exit code: 0 all went well, 1 some of the work could not be done, 2 the
        arguments, a table or the model are unusable and nothing was done, 130 it was
        interrupted, 143 or 129 it was ended by SIGTERM or SIGHUP; what was done is kept
        then too.

    Example:
        >>> main(["info", "/no/such/model.npz"])
        2
    """
    with interrupted_by_signals():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(args: list[str]) -> int:
    _print_any_text()
    if "jax" not in sys.modules:  # whoever calls us with it has made their choice
        keep_programs()
    if args == ["--version"]:
        print(f"jaxclnf {version('jaxclnf')}")
        return 0
    try:
        given, args = args, translate(args)
        command = tyro.extras.subcommand_cli_from_dict(
            _parsers(args[:1]),
            prog="jaxclnf",
            description="Fits face landmarks with constrained local neural fields."
            " --version prints the version.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        if args != given:
            command = dataclasses.replace(command, openface_options=True)
        code = command.run()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except (
        SystemExit
    ) as end:  # from the parser: help was shown, or an argument is wrong
        return end.code if isinstance(end.code, int) else 2
    except (AppError, ModelFileError) as error:
        say_error(error)
        return 2
    except BrokenPipeError as error:  # the reader, `head` for instance, has seen enough
        return _end_without_output("nobody reads what is said", error)
    except OSError as error:
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        return _end_without_output(
            f"what is said cannot be written ({error.strerror})", error
        )
    except RuntimeError as error:
        if "Unable to initialize backend" not in str(error):
            raise
        say_error(f"JAX cannot begin: {error}")
        return 2
    except SignalEnd as error:
        with contextlib.suppress(OSError):  # the terminal may be gone
            say_error(with_notes(f"ended by {error.signal.name}", error))
        return error.exit_code
    except KeyboardInterrupt as error:
        say_error(with_notes("interrupted", error))
        return 130


def _end_without_output(why: str, error: OSError) -> int:
    sys.stdout = None
    with contextlib.suppress(OSError):
        say_error(with_notes(f"{why}; ended", error))
    return 1


def _parsers(chosen: list[str]) -> dict[str, Callable[..., Any]]:
    """Parses the chosen subcommand; of the others, only the description is shown."""
    # Importing them all would import JAX, and make `jaxclnf --help` slow.
    parsers = {}
    for name, (place, description) in COMMANDS.items():
        if name in chosen:
            module, attribute = place.split(":")
            parsers[name] = getattr(importlib.import_module(module), attribute)
        else:

            def described() -> None: ...

            described.__doc__ = description
            parsers[name] = described
    return parsers


def _print_any_text() -> None:
    """Lets names of files be printed that the terminal's encoding does not know."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
