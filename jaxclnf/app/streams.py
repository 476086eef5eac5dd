"""The error stream, to which C libraries write too, and several threads at a time."""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

from jaxclnf.app.errors import with_notes

COMPILES = (
    "jaxclnf: the first fit of a kind compiles programs; later runs find them in the"
    " cache"
)
"""What to say while programs are compiled."""

_LOG_PREFIX = re.compile(r"^\[[^\]]*\] global \S+ \S+ ")

_ERROR_STREAM = threading.RLock()
"""Held by who writes to the error stream, and by who collects what others write."""


def say(text: str) -> None:
    """Prints a line on the error stream.

    Args:
        text: The line. While a decoder's messages are collected it waits.

    Example:
        >>> say("jaxclnf: nothing to say")
    """
    with _ERROR_STREAM:
        print(text, file=sys.stderr)


def say_error(error: Exception | str) -> None:
    """Says what went wrong.

    Args:
        error: What happened; the notes of an exception are said too.

    Example:
        >>> say_error("a.jpg: no such file")
    """
    text = error if isinstance(error, str) else with_notes(str(error), error)
    say(f"jaxclnf: {text}")


@contextlib.contextmanager
def said_if_slow(text: str, seconds: float = 3.0) -> Iterator[None]:
    """Says something at a terminal if what is done meanwhile takes long.

    Args:
        text: The line.
        seconds: After how long.

    Yields:
        Nothing.

    Example:
        >>> with said_if_slow("still at work"):
        ...     pass
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(seconds, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def decoder_messages() -> Iterator[list[str]]:
    """Collects the lines that C libraries write to the error stream meanwhile.

    Yields:
        A list that is filled when the block ends.

    Example:
        >>> with decoder_messages() as messages:
        ...     _ = os.write(2, b"not a picture")
        >>> messages
        ['not a picture']
    """
    messages: list[str] = []
    with _ERROR_STREAM:
        yield from _collected(messages)


def _collected(messages: list[str]) -> Iterator[list[str]]:
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # there is no error stream
        saved = None
    if saved is None:
        yield messages
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, saved)
        sink = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(sink.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            sink.seek(0)
            text = sink.read().decode(errors="replace")
            lines = (_LOG_PREFIX.sub("", line).strip() for line in text.splitlines())
            messages.extend(line for line in lines if line)
