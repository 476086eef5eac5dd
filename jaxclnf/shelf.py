"""A shelf for traced programs: the process's own, which is empty and takes nothing
until one is set up."""

import time
from typing import Protocol, runtime_checkable

LOADED_AT = time.time()
"""When the package was loaded, seconds since the epoch: source code that is younger is
not what traces."""


@runtime_checkable
class Shelf(Protocol):
    """Where traced programs are kept for other processes."""

    def get(self, name: str, key: str) -> bytes | None:
        """A program that was put there.

        Args:
            name: The name of the function, for people.
            key: All that its trace depends on, but for the source code and JAX itself.

        Returns:
            The program; None where there is none.
        """
        ...

    def put(self, name: str, key: str, program: bytes) -> None:
        """Keeps a program.

        Args:
            name: As for `get`.
            key: As for `get`.
            program: The program.
        """
        ...


_shelf: Shelf | None = None


def use_shelf(shelf: Shelf | None) -> None:
    """Sets up the shelf of this process.

    Args:
        shelf: The shelf; None: programs are traced in each process anew.

    Example:
        >>> use_shelf(None)
        >>> shelf_in_use() is None
        True
    """
    global _shelf
    _shelf = shelf


def shelf_in_use() -> Shelf | None:
    """The shelf of this process.

    Returns:
        The shelf, or None.

    Example:
        >>> shelf_in_use() is None
        True
    """
    return _shelf
