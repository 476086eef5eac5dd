"""The error stream, shared by us, by C libraries and by threads."""

import os
import threading

import pytest

from jaxclnf.app.streams import decoder_messages, say


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
