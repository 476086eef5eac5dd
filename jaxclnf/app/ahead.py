"""Work in several threads, item after item: reading, fitting and drawing at a time."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

ROOM = 2
"""How many items are made ahead. Frames take memory: of a video that is read, followed
and written at a time there are `2 ROOM + 1` at most."""


def made_ahead(
    items: Generator[Item, None, None], room: int = ROOM
) -> Generator[Item, None, None]:
    """Goes through a generator in a thread of its own, a few items ahead.

    Args:
        items: What is to be made ahead; it is closed at the end.
        room: How many items may be ready, and not asked for yet.

    Yields:
        The items, in order. Who may stop early uses it in `contextlib.closing`, or the
        thread goes on until Python notices.

    Raises:
        Exception: What the generator raises, once the items before were given.

    Example:
        >>> list(made_ahead(2 * n for n in range(3)))
        [0, 2, 4]
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(room))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            for later in waiting:
                later.cancel()
            thread.submit(items.close).result()
