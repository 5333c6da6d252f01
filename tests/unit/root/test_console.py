import io
import os
import threading

import pytest

from teuthis.root.console import KEPT, Console, harmless


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain\ttext\r\nline", "plain\ttext\nline"),
        (b"\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1Hhome", "red home"),
        (b"\x1b]0;title\x07", "0;title\ufffd"),
        (b"\x1b]52;c;ZXZpbA==\x1b\\", "52;c;ZXZpbA=="),
        (b"\x9b31m \x00\x08\x7f", "\ufffd31m \ufffd\ufffd\ufffd"),
        ("\u202eevil\u2066 \u200b".encode(), "\ufffdevil\ufffd \ufffd"),
        ("\u009b2J".encode(), "\ufffd2J"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"half an escape \x1b[", "half an escape \ufffd["),
        ("grüße".encode(), "grüße"),
    ],
)
def test_no_guest_text_can_command_a_terminal(raw: bytes, shown: str) -> None:
    assert harmless(raw) == shown


def console_of(data: bytes, sink: io.BytesIO | None = None) -> Console:
    read, write = os.pipe()
    console = Console(read, sink)
    with os.fdopen(write, "wb") as pipe:
        pipe.write(data)
    console.finish(100)
    return console


def test_the_newest_output_is_kept() -> None:
    console = console_of(b"x" * KEPT + b"end")
    assert len(console.tail()) == KEPT
    assert console.tail().endswith(b"xend")


def test_everything_goes_to_the_sink() -> None:
    sink = io.BytesIO()
    console_of(b"a\x1b[0m" * 100_000, sink)
    assert sink.getvalue() == b"a\x1b[0m" * 100_000


def test_a_closed_sink_does_not_stop_the_reading() -> None:
    sink = io.BytesIO()
    sink.close()
    assert console_of(b"words\n" * 50_000, sink).last_words().endswith("words")


def test_last_words_are_few_lines() -> None:
    words = console_of(b"".join(b"line %d\n" % n for n in range(100))).last_words().splitlines()
    assert words[-1] == "line 99"
    assert len(words) == 24


def test_last_words_of_a_panic_say_why() -> None:
    noise = [b"noise %d" % n for n in range(100)]
    lines = [*noise, b"cause", b"Kernel panic - not syncing: why", *noise]
    words = console_of(b"\n".join(lines)).last_words().splitlines()
    assert words[5:7] == ["cause", "Kernel panic - not syncing: why"]
    assert len(words) == 24


def test_the_end_is_not_awaited_for_ever() -> None:
    read, write = os.pipe()
    console = Console(read, None)
    console.finish(0.01)
    os.close(write)
    console.finish(100)
    assert threading.active_count() >= 1
