"""Several programs at a time: one for each core of a CPU, two for another device."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import jax

Item = TypeVar("Item")

_CHOICES = (
    "enable_x64",
    "default_device",
    "default_matmul_precision",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "debug_nans",
    "debug_infs",
    "disable_jit",
    "log_compiles",
)
"""What can be chosen for one thread that changes what is computed, refused or told."""


def num_cores() -> int:
    """How many programs run at a time.

    Example:
        >>> num_cores() >= 1
        True
    """
    # Those this process may run on, where the system says which they are.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return multiprocessing.cpu_count()


def on_all_cores(function: Callable[[Item], Any], items: Iterable[Item]) -> list:
    """Calls a function for each of some items, on CPU as many at a time as cores.

    Args:
        function: Starts a compiled program and returns its arrays. Only starting is one
            at a time, so that a program that is new is compiled once.
        items: What to call it with.

    Returns:
        The results, in order, all there.

    Example:
        >>> [int(x) for x in on_all_cores(lambda x: jnp.sin(x) * 0 + x, [1.0, 2.0])]
        [1, 2]
    """
    items = list(items)
    workers = min(len(items), num_cores())
    if workers < 2 or jax.default_backend() != "cpu":
        return [jax.block_until_ready(function(item)) for item in items]
    one_starts = threading.Lock()
    contexts = [
        (getattr(jax, name), getattr(jax.config, f"jax_{name}")) for name in _CHOICES
    ]

    def call(item: Item) -> Any:
        with ExitStack() as callers:
            # What the caller chose in a `with` block is unknown to other threads.
            for context, value in contexts:
                callers.enter_context(context(value))
            with one_starts:
                result = function(item)
            return jax.block_until_ready(result)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, items))


def one_ahead(function: Callable[[Item], Any], items: Iterable[Item]) -> Iterator:
    """Calls a function for each of some items, one more before a result is handed out.

    So a device works on while its last results are looked at.

    Args:
        function: Starts a compiled program and returns its arrays.
        items: What to call it with.

    Yields:
        The results, in order; they may still be on their way.

    Example:
        >>> [int(x) for x in one_ahead(jnp.negative, [1, 2, 3])]
        [-1, -2, -3]
    """
    begun: deque = deque()
    for item in items:
        begun.append(function(item))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun
