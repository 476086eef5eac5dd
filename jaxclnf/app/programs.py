"""Compiled programs, kept for the next run: in the user's cache, made on first use."""

import contextlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path

import platformdirs

_DAMAGED = re.compile(
    r"Error reading persistent compilation cache entry for '(?P<name>\w+)'"
)


def programs_folder() -> Path:
    """Where the command keeps compiled programs.

    Returns:
        A folder of the user's cache, which need not exist. Each host has one of its
        own: programs are made for its processor.

    Example:
        >>> programs_folder().parent.name
        'programs'
    """
    cache = platformdirs.user_cache_path("jaxclnf", appauthor=False)
    return cache / "programs" / (platform.node() or "host")


def keep_programs() -> None:
    """Has JAX keep what it compiles, unless the user has decided otherwise.

    To be called before JAX is loaded; where it is loaded already, nothing is changed.
    JAX's own environment variables come first: `JAX_COMPILATION_CACHE_DIR` names
    another folder, `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    Example:
        >>> keep_programs()  # JAX is loaded here: its settings stay as they are
        >>> "jax" in sys.modules
        True
    """
    if "jax" in sys.modules:
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs_folder()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    # XLA would print an error for every program that it loads, about two preferences
    # that are no features of a processor (jax 0.10.1).
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _forget_damaged_programs(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))


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
