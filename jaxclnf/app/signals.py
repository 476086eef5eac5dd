"""Signals that end a program, taken as Ctrl-C is: what was done is kept."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_NAMES = "SIGINT", "SIGTERM", "SIGHUP"
"""Sent by Ctrl-C, by `timeout`, containers and schedulers, and by a terminal that is
closed. Not every system has the last."""


_AGAIN = 2.0
"""Seconds after which a signal counts once more."""


class SignalEnd(KeyboardInterrupt):
    """A signal has ended the work."""

    def __init__(self, number: int) -> None:
        """Keeps which signal it was."""
        super().__init__()
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """What shells show of a program that the signal ended."""
        return 128 + self.signal


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Lets SIGTERM, and SIGHUP where there is one, end a block as Ctrl-C does, once.

    One raises `SignalEnd`, SIGINT its own `KeyboardInterrupt`; those just after it are
    passed over, for `timeout` sends two, people lose patience, and what was done is
    being kept. A signal that is ignored stays so, as
    `nohup` wants it. Outside the main thread, where Python takes no signals, nothing is
    changed.

    Yields:
        Nothing.

    Raises:
        SignalEnd: The signal has come.

    Example:
        >>> before = signal.getsignal(signal.SIGTERM)
        >>> with interrupted_by_signals():
        ...     pass
        >>> signal.getsignal(signal.SIGTERM) == before
        True
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -math.inf

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _AGAIN:
            last = now
            raise KeyboardInterrupt if number == signal.SIGINT else SignalEnd(number)

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    # One of a library in C is None, and could not be put back.
    ours = [n for n in numbers if before[n] not in (signal.SIG_IGN, None)]
    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
