"""Signals end the command as Ctrl-C does."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxclnf.app.media import write_png
from jaxclnf.app.signals import SignalEnd, interrupted_by_signals
from jaxclnf.storage.npz import save_model

HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # not on Windows


@pytest.fixture(autouse=True)
def heard():
    """No signal is ignored, as `nohup` has it: the command would ignore it too."""
    before = {n: signal.signal(n, signal.SIG_DFL) for n in {signal.SIGTERM, HANGUP}}
    # A shell has what it runs in the background ignore this one.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize(
    ("args", "number", "until", "left"),
    [
        (["fit"], signal.SIGTERM, "0007.png: no face", ["boxes", "summary"]),
        (["track", "--overlay"], HANGUP, "frame 50 of", ["photos", "photos"]),
    ],
)
def test_a_signal_ends_a_run_and_what_is_done_is_kept(
    example, tmp_path: Path, args, number, until, left
):
    folder, out, model = (tmp_path / name for name in ("photos", "out", "tiny.npz"))
    folder.mkdir()
    save_model(example["model"], model)
    for i in range(3000):
        write_png(folder / f"{i:04d}.png", np.zeros((60, 70, 3), np.uint8))
    args = [*args, str(folder), "--model", str(model), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "jaxclnf", *args, "--window-sizes", "7"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert any(until in line for line in process.stdout)
        process.send_signal(number)
        process.send_signal(number)  # as `timeout` does
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    last = shown.splitlines()[-1]
    assert last.startswith(f"jaxclnf: ended by {number.name}; {out}")
    kept = sorted(path.name for path in out.glob("*partial*"))
    assert [name.split(".")[0] for name in kept] == left
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("number", sorted({signal.SIGTERM, HANGUP}))
def test_the_first_signal_ends_a_block_and_handlers_are_put_back(number):
    before = signal.getsignal(number)
    went_on = False
    with pytest.raises(SignalEnd) as caught, interrupted_by_signals():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            went_on = True
    assert went_on and caught.value.exit_code == 128 + number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(number) == before


def test_ctrl_c_ends_a_block_once():
    before = signal.getsignal(signal.SIGINT)
    went_on = False
    with pytest.raises(KeyboardInterrupt) as caught, interrupted_by_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            went_on = True
    assert went_on and not isinstance(caught.value, SignalEnd)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            signal.raise_signal(signal.SIGTERM)
    finally:
        assert signal.signal(signal.SIGTERM, before) == signal.SIG_IGN


def test_in_another_thread_nothing_is_changed():
    handlers = []

    def work() -> None:
        with interrupted_by_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
