"""Programs, kept for the next run: in the user's cache, made on first use."""

import contextlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path

from jaxclnf.app.traces import TraceFolder
from jaxclnf.shelf import use_shelf
from jaxclnf.user_cache import user_cache

_SHORTEST = 0.05
"""Seconds of compilation from which on a program is kept."""
_DAMAGED = re.compile(
    r"Error reading persistent compilation cache entry for '(?P<name>\w+)'"
)


def programs_folder() -> Path:
    """Where compiled programs are kept.

    Returns:
        A folder of the user's cache, which need not exist. Each host has one of its
        own: programs are made for its processor.

    Example:
        >>> programs_folder().parent.name
        'programs'
    """
    return user_cache() / "programs" / (platform.node() or "host")


def keep_programs() -> None:
    """Has JAX keep what it compiles, and keeps what the package traces.

    Then only the first fit of a kind takes long, and not the first of each process. The
    command calls it; in Python it is for you to call, before anything is compiled.
    JAX's own environment variables come first: `JAX_COMPILATION_CACHE_DIR` names
    another folder, `JAX_ENABLE_COMPILATION_CACHE=false` switches it off. The folder may
    be removed at any time; a damaged file in it is removed instead of JAX's warning.
    Whoever may write there may have you run programs of theirs. What the package traces
    is told apart by its source code: who replaces functions of it in a running process
    must not have programs kept.

    Called before JAX is loaded it also sets `TF_CPP_MIN_LOG_LEVEL=3`, unless that is
    set: else XLA prints an error for every program that it finds in the folder.

    Example:
        >>> keep_programs()
        >>> bool(jax.config.jax_compilation_cache_dir)
        True
    """
    if "jax" in sys.modules:
        folder = _keep_from_now_on()
    else:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs_folder()))
        os.environ.setdefault(
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_SHORTEST)
        )
        # XLA would print an error for every program that it loads, about two
        # preferences that are no features of a processor (jax 0.10.1).
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    # JAX keeps nothing in "", and in a place with "://" we do not.
    if folder and "://" not in folder:
        _forget_damaged_programs(Path(folder))
        use_shelf(TraceFolder(Path(folder) / "jaxclnf-traced"))
    else:
        use_shelf(None)


def _keep_from_now_on() -> str:
    """The folder, which may have been chosen before."""
    import jax

    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is not None:
        return chosen
    jax.config.update("jax_compilation_cache_dir", str(programs_folder()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)
    return str(programs_folder())


def _forget_damaged_programs(folder: Path) -> None:
    """Removes what a killed process left half written, instead of warnings about it.

    JAX writes no program that is there already, so it would find half of one for ever.
    The warning tells only the name that variants of a program share: all of them go.
    """
    show = warnings.showwarning

    def remove(message: Warning | str, *place) -> None:
        damaged = _DAMAGED.match(str(message))
        if damaged is None:
            return show(message, *place)
        for file in folder.glob(f"{damaged['name']}-*-cache"):
            with contextlib.suppress(OSError):
                file.unlink()

    warnings.showwarning = remove
