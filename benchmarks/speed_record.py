"""What `speed.py` has measured so far: kept in a file, whatever happens next."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

Rows = Iterable[tuple[str, Callable[[], dict]]]
"""Names of rows, and what measures each."""

REST = "what follows"
"""The row of an error after which the rows that were to come are not known."""


class Record:
    """A report that grows row by row and is written after each.

    A row that fails is `{"error": TEXT}`, and the next ones go on: on a machine that is
    lent for minutes, one lack of memory must not cost the other numbers.
    """

    def __init__(self, out: Path | None = None) -> None:
        """Begins with nothing; with a file, writes it, so that a bad name fails now."""
        self.report: dict = {}
        self.out = out
        self.write()

    def fill(self, title: str, rows: dict, parts: Rows) -> None:
        """Measures rows, one after the other.

        Args:
            title: What to say before each row's name.
            rows: Where to put the rows, a dictionary within the report.
            parts: The rows. If finding them fails, the rest is one row, `REST`.

        Example:
            >>> record = Record()
            >>> record.fill("sums", record.report, [("one", lambda: {"is": 1})])
            >>> record.report
            {'one': {'is': 1}}
        """
        try:
            for name, measure in parts:
                _say(f"{title}{name} ...")
                try:
                    rows[name] = measure()
                except Exception as error:
                    rows[name] = {"error": error_text(error)}
                self._row_done(rows[name])
        except Exception as error:
            _say(f"{title}{REST} ...")
            rows[REST] = {"error": error_text(error)}
            self._row_done(rows[REST])

    def note(self, name: str, value: dict) -> None:
        """Adds what needs no measuring.

        Args:
            name: Its name in the report.
            value: What it is.

        Example:
            >>> record = Record()
            >>> record.note("ratios", {})
            >>> record.report
            {'ratios': {}}
        """
        self.report[name] = value
        self.write()

    def write(self) -> None:
        """Writes the file, if there is one.

        Raises:
            OSError: It cannot be written; what was written before is still there.

        Example:
            >>> Record().write()
        """
        if self.out:
            # Whoever stops the process finds the last whole report.
            temporary = self.out.with_name(self.out.name + ".tmp")
            temporary.write_text(json.dumps(self.report, indent=1) + "\n")
            temporary.replace(self.out)

    def _row_done(self, row: dict) -> None:
        _say("    " + ", ".join(f"{key} {value}" for key, value in row.items()))
        try:
            self.write()
        except OSError as error:  # There may be room again at the end.
            _say(f"    not written: {error_text(error)}")


def error_text(error: Exception) -> str:
    """An error in one line, not too long.

    Args:
        error: The error.

    Returns:
        Its type and message; of a program that failed, the last line that it wrote.

    Example:
        >>> error_text(ValueError("no\\nnumber"))
        'ValueError: no number'
    """
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        text = str(error.stderr).strip().splitlines()[-1]
    return f"{type(error).__name__}: {' '.join(text.split())}"[:300]


def errors(report: dict) -> list[str]:
    """All that failed.

    Args:
        report: A report, or a part of one.

    Returns:
        Where and why, a line each.

    Example:
        >>> errors({"models": {"default": {"error": "found no file"}}})
        ['models: default: found no file']
    """
    found = []
    for name, value in report.items():
        if isinstance(value, dict):
            if "error" in value:
                found.append(f"{name}: {value['error']}")
            else:
                found += [f"{name}: {line}" for line in errors(value)]
    return found


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more: no reason to stop
        print(text, file=sys.stderr, flush=True)
