"""The error stream, shared by us, by C libraries and by threads."""

import io
import os
import sys
import threading

import pytest

from jaxclnf.app import streams
from jaxclnf.app.streams import decoder_messages, said_if_slow, say, say_error


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_we_say_is_no_message_of_a_decoder(capfd: pytest.CaptureFixture):
    begun = threading.Event()

    def speak() -> None:
        begun.set()
        say("ours")

    speaker = threading.Thread(target=speak)
    with decoder_messages() as messages:
        speaker.start()
        assert begun.wait(10)
        speaker.join(0.1)
        assert speaker.is_alive()  # it waits
        os.write(2, b"[ WARN:0@1.2] global load.cpp:7 readData no end\n\ntheirs\n")
    speaker.join(10)
    assert messages == ["no end", "theirs"]
    assert capfd.readouterr().err == "ours\n"


def test_messages_that_came_before_an_exception_are_kept_from_the_terminal(
    capfd: pytest.CaptureFixture,
):
    with pytest.raises(ValueError), decoder_messages() as messages:
        os.write(2, b"theirs\n")
        raise ValueError
    assert messages == ["theirs"]
    say("after it")  # nobody holds the stream any more
    assert capfd.readouterr().err == "after it\n"


def test_what_takes_long_is_said_at_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    said = threading.Event()
    monkeypatch.setattr(streams, "say", lambda text: said.set())
    with said_if_slow("compiling", 0.01):
        assert said.wait(10)


@pytest.mark.parametrize(("stream", "seconds"), [(Terminal, 60.0), (io.StringIO, 0.0)])
def test_nothing_is_said_where_it_is_quick_or_nobody_looks(
    stream: type[io.StringIO], seconds: float, monkeypatch: pytest.MonkeyPatch
):
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    before = threading.active_count()
    with said_if_slow("compiling", seconds):
        assert threading.active_count() - before == (stream is Terminal)
    assert shown.getvalue() == ""


def test_notes_of_an_error_are_said_too(capsys: pytest.CaptureFixture):
    error = ValueError("the disk is full")
    error.add_note("a.partial.csv has the first 3 rows")
    say_error(error)
    expected = "jaxclnf: the disk is full; a.partial.csv has the first 3 rows\n"
    assert capsys.readouterr().err == expected
