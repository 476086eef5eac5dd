"""Items made ahead in a thread: order, room, exceptions and the end."""

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from jaxclnf.app.ahead import made_ahead


def numbers(made: list[int], count: int = 10) -> Generator[int, None, None]:
    for n in range(count):
        made.append(n)
        yield n


@pytest.mark.parametrize("count", [0, 1, 3, 50])
@pytest.mark.parametrize("room", [1, 4])
def test_all_in_order(count: int, room: int):
    assert list(made_ahead(numbers([], count), room)) == list(range(count))


def test_no_more_than_there_is_room_for():
    made: list[int] = []
    items = made_ahead(numbers(made), room=2)
    assert next(items) == 0
    until = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    items.close()
    assert made == [0, 1, 2]


def test_made_in_another_thread_while_the_last_is_used():
    made_next = threading.Event()

    def two() -> Generator[int, None, None]:
        yield threading.get_ident()
        made_next.set()
        yield threading.get_ident()

    threads = []
    for thread in made_ahead(two(), room=1):
        assert made_next.wait(10)
        threads.append(thread)
    assert threads[0] == threads[1] != threading.get_ident()


def test_an_exception_comes_behind_the_items_before_it():
    def broken() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    items = made_ahead(broken())
    assert (next(items), next(items)) == (1, 2)
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_who_stops_early_ends_the_generator(how: str):
    ended = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    items = made_ahead(endless())
    next(items)
    if how == "closed":
        items.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            items.throw(KeyboardInterrupt)
    assert ended.is_set()


def test_one_inside_the_other():
    inner_ended = threading.Event()

    def inner() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            inner_ended.set()

    def outer() -> Generator[int, None, None]:
        with closing(made_ahead(inner())) as numbers:
            for n in numbers:
                yield 2 * n

    items = made_ahead(outer())
    assert [next(items) for _ in range(3)] == [0, 2, 4]
    items.close()
    assert inner_ended.is_set()


def test_an_interrupt_ends_the_threads():
    """SIGINT while the main thread waits for an item that is being made."""
    asked = threading.Event()

    def slow() -> Generator[int, None, None]:
        yield 1
        assert asked.wait(10)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        yield 2

    # Shells have programs in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        num_threads = threading.active_count()
        items = made_ahead(slow(), room=1)
        assert next(items) == 1
        with pytest.raises(KeyboardInterrupt), closing(items):
            asked.set()
            next(items)
            time.sleep(10)
        assert threading.active_count() == num_threads
    finally:
        signal.signal(signal.SIGINT, before)
