"""The house keeps its shape: imports point down, files are short, all is documented."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxclnf"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOOR = {
    "pytree",
    "status",
    "errors",
    "by_platform",
    "batching",
    "linalg",
    "materialised",
    "loops",
    "shelf",
    "tracing",
}
INNER = {"shape", "experts", "solver", "fitting"}
MAY_IMPORT = {
    "pytree": set(),
    "status": set(),
    "errors": set(),
    "user_cache": set(),
    "whole_files": set(),
    "by_platform": set(),
    "batching": {"by_platform"},
    "materialised": set(),
    "loops": set(),
    "shelf": set(),
    "tracing": {"shelf"},
    "linalg": {"batching"},
    "shape": FLOOR,
    "experts": FLOOR | {"shape"},
    "solver": FLOOR | {"shape", "experts"},
    "fitting": FLOOR | {"shape", "experts", "solver"},
    "diagnosis": FLOOR | INNER,
    "detect": FLOOR | INNER,
    "learn": FLOOR | INNER | {"detect"},
    "openface": FLOOR | INNER | {"detect"},
    "storage": FLOOR | INNER | {"openface", "user_cache", "whole_files"},
    "app": FLOOR
    | INNER
    | {"detect", "learn", "openface", "storage", "user_cache", "whole_files"},
    "__main__": {"app"},
}
"""What each room may import besides itself: the direction of the house."""

INNER_LIBRARIES = {"jax", "numpy", "jaxtyping"}
INNER_FORBIDDEN = {"glob", "io", "logging", "os", "pathlib", "shutil", "tempfile"}
"""Parts of the standard library that touch files or talk; not for the inner rooms."""

MAX_LINES = 400
UNFINISHED = re.compile("TODO|FIXME|XXX|raise NotImplementedError")


def room_of(source: Path) -> str:
    """The folder of a source within the package, or its stem on floor 0."""
    return source.relative_to(PACKAGE).with_suffix("").parts[0]


def tree_of(source: Path) -> ast.Module:
    """The parsed source."""
    return ast.parse(source.read_text(encoding="utf-8"))


def imports_of(source: Path) -> Iterator[str]:
    """Dotted names of all modules that a source imports, wherever in it."""
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{source}: a relative import"
            yield node.module
            if node.module == "jaxclnf":
                yield from (f"jaxclnf.{alias.name}" for alias in node.names)


def name(source: Path) -> str:
    """A source as the report of the tests shows it."""
    return str(source.relative_to(ROOT))


ROOMS = [source for source in SOURCES if source != PACKAGE / "__init__.py"]
INNER_SOURCES = [source for source in ROOMS if room_of(source) in INNER]


def test_every_room_has_its_rule() -> None:
    assert {room_of(source) for source in ROOMS} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("source", ROOMS, ids=name)
def test_imports_point_down(source: Path) -> None:
    room = room_of(source)
    wrong = []
    for module in imports_of(source):
        first, *rest = module.split(".")
        if first != "jaxclnf":
            continue
        # The bare package is the public API, which reaches every room.
        target = rest[0] if rest else "the public API"
        if target != room and target not in MAY_IMPORT[room]:
            wrong.append(module)
    assert not wrong


@pytest.mark.parametrize("source", INNER_SOURCES, ids=name)
def test_inner_rooms_only_compute(source: Path) -> None:
    allowed = INNER_LIBRARIES | {"jaxclnf"} | sys.stdlib_module_names
    used = {module.split(".")[0] for module in imports_of(source)}
    if source.name == "cores.py":  # asks the system on which cores it may run
        used.discard("os")
    assert used <= allowed - INNER_FORBIDDEN
    calls = {
        node.func.id
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"print", "open", "input"}


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_sources_are_short_and_finished(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert not UNFINISHED.findall(text)


def public(nodes: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes of a body whose names have no leading underscore."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                yield node


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_everything_public_is_documented(source: Path) -> None:
    tree = tree_of(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in public(tree.body):
        text = ast.get_docstring(node) or ""
        if not text:
            missing.append(node.name)
        if isinstance(node, ast.FunctionDef) and "Example:\n    >>> " not in text:
            missing.append(f"an example of {node.name}")
        if isinstance(node, ast.ClassDef):
            missing += [
                f"{node.name}.{method.name}"
                for method in public(node.body)
                if not ast.get_docstring(method)
            ]
    assert not missing


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether a class is made a pytree, or another dataclass, by its decorators."""
    words = {ast.unparse(d).split("(")[0] for d in node.decorator_list}
    return bool(words & {"pytree_dataclass", "dataclass", "dataclasses.dataclass"})


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_every_public_field_is_documented(source: Path) -> None:
    missing = []
    for node in filter(
        lambda n: isinstance(n, ast.ClassDef), public(tree_of(source).body)
    ):
        assert isinstance(node, ast.ClassDef)
        if not is_dataclass(node):
            continue
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            documented = (
                isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            )
            if isinstance(field, ast.AnnAssign) and not documented:
                missing.append(f"{node.name}.{ast.unparse(field.target)}")
    assert not missing


def test_one_list_of_public_names() -> None:
    import jaxclnf

    tree = tree_of(PACKAGE / "__init__.py")
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typed = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names:
            assert alias.asname == alias.name  # `X as X` is what re-exports to checkers
            typed[alias.name] = node.module.removeprefix("jaxclnf.")
    assert typed == jaxclnf._HOME
    assert jaxclnf.__all__ == sorted([*typed, "__version__"])
    assert list(jaxclnf._HOME) == sorted(jaxclnf._HOME)
    assert all(getattr(jaxclnf, public_name) is not None for public_name in typed)
    assert set(dir(jaxclnf)) >= set(jaxclnf.__all__)
