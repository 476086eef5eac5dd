"""Code blocks of the Markdown files, for the tests that run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[\w: ]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(path: Path, language: str) -> list[tuple[str, int, str]]:
    """The fenced blocks of a language: mark (or nothing), first line, and code."""
    text = path.read_text(encoding="utf-8")
    return [
        (
            match["mark"] or "",
            text.count("\n", 0, match.start("code")) + 1,
            match["code"],
        )
        for match in _BLOCK.finditer(text)
        if match["language"] == language
    ]


def run_block(path: Path, line: int, code: str, names: dict) -> None:
    """Runs a block; tracebacks show its place in the Markdown file."""
    exec(compile("\n" * (line - 1) + code, str(path), "exec"), names)
