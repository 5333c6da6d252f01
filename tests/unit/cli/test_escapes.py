"""What passes from a guest to the user's terminal, and what does not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.recorded import recorded

from teuthis.cli.escapes import RESET, Filter
from teuthis.flows import Counters

GOOD = [
    b"plain text\r\n\ttab\x08\x07",
    "grüße 日本 🦑 é".encode(),
    b"\x1b[1;31mred\x1b[0m\x1b[38;5;208mx\x1b[38;2;1;2;3my\x1b[38:2::1:2:3mz\x1b[m",
    b"\x1b[H\x1b[2J\x1b[10;20H\x1b[K\x1b[?25l\x1b[?1049h\x1b[?2004h\x1b[?1000;1006h",
    b"\x1b[3A\x1b[B\x1b[2C\x1b[D\x1b[5G\x1b[4d\x1b[2L\x1b[M\x1b[3P\x1b[@\x1b[4X\x1b[3S\x1b[T",
    b"\x1b7\x1b8\x1b=\x1b>\x1bM\x1bD\x1bE\x1bH\x1b(B\x1b)0\x0e\x0f\x1b#8\x1bc",
    b"\x1b[6n\x1b[4h\x1b[20l\x1b[2;20r\x1b[s\x1b[u\x1b[2 q\x1b[!p\x1b[22;0t\x1b[23t\x1b[>4;2m",
    b"\x1b]0;user@host: ~/src\x07\x1b]2;title\x1b\\\x1b]11;#123456\x07\x1b]4;1;rgb:00/11/22\x07",
    b"\x1b]104\x07\x1b]112\x07",
    b"\x1b[?1034h\x1b[?1h\x1b[?12;25h\x1b[?1002h\x1b[?1006h\x1b[?1004h\x1b[?7l\x1b[?2026h\x1b[?1J",
]

BAD = [
    b"\x1b]52;c;Y3VybCBldmls\x07",  # fills the clipboard
    b"\x1b]52;c;?\x1b\\",
    b"\x1b]50;?\x07",
    b"\x1b]11;?\x07",  # which colour?
    b"\x1b]4;1;?\x07",
    b"\x1b]8;;http://evil\x1b\\",
    b"\x1b]9;notify\x07",
    b"\x1b]1337;File=name:AAAA\x07",
    b"\x1b]777;notify;a;b\x07",
    b"\x1b]0;a\nb\x07",
    b"\x1b[c\x1b[0c\x1b[>c\x1b[=c",  # what are you?
    b"\x1b[5n\x1b[?6n\x1b[?15n",
    b"\x1b[x\x1b[>q\x1b[?2026$p\x1b[?u\x1b[>1u",
    b"\x1b[21t\x1b[20t\x1b[18t\x1b[8;99;99t\x1b[2t\x1b[3;0;0t",  # title, windows
    b"\x1b[1;1;1;10;10;1*y",  # what stands on the screen?
    b"\x1b[i\x1b[5i\x1b[?5i",  # print
    b"\x1b[1;2;3;4;5T",
    b"\x1b[?2048h\x1b[?2031h\x1b[?25;2048h",  # types its size, its colours, whenever they change
    b"\x1b[?9001h\x1b[?9h\x1b[?1001h\x1b[?1042h\x1b[?h",  # other keys, another mouse, windows
    b"\x1bP$qm\x1b\\",
    b"\x1bP1;1|17/73\x1b\\",  # a key that types
    b"\x1bP+q544e\x1b\\",
    b"\x1bPq#0;2;0;0;0\x1b\\",
    b"\x1b_Gf=100,t=f;L2V0Yy9wYXNzd2Q=\x1b\\",  # show a file of the host's
    b"\x1b^private\x1b\\\x1bXstring\x1b\\\x1bktitle\x1b\\",
    b"\x1bZ\x05\x1b F\x1b G\x1b%@\x1b%G",
    b"\x9b6n\xc2\x9b21t\xc2\x90$qm\xc2\x9c",  # the same in eight bits
    b"\x00\x01\x02\x10\x1a\x7f",
]

# Whatever a terminal could take for more than text and the sequences of the list.
SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
QUESTIONS = re.compile(
    rb"\x1b\[\?(?:[0-9;]*;)?(?:9|2031|2048|9001)[;hrs]"
    rb"|\x1b\[(?:[0-9;]*c|[>=?][0-?]*[cnqpu]|5n|[0-?]*[ -/]*[ixy]|[0-?]*\$)|\x1b[PX^_kZ]|\x05"
)


def through(*pieces: bytes) -> tuple[bytes, int]:
    counters = Counters()
    screen = Filter(counters)
    shown = b"".join(screen.feed(piece) for piece in pieces)
    return shown, counters.snapshot()["client.terminal"].rejected


@pytest.mark.parametrize("data", GOOD)
def test_what_programs_need_passes(data: bytes) -> None:
    assert through(data) == (data, 0)


@pytest.mark.parametrize("data", BAD)
def test_what_reaches_beyond_the_screen_is_left_out(data: bytes) -> None:
    shown, left_out = through(b"before" + data + b"after")
    assert shown.startswith(b"before")
    assert shown.endswith(b"after")
    assert left_out
    assert b"\x1b" not in shown
    assert not set(shown.decode()) & set(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\x1b[31\x01mb", b"a[31mb"),
        (b"a\x1b\x1b[1mb", b"a\x1b[1mb"),
        (b"\x1b]52;c;AAAA\x1b[1mb", b"\x1b[1mb"),
        (b"\x1b]52;c;" + b"A" * 10_000 + b"\x07end", b"end"),
        (b"\x1bP" + b"A" * 10_000 + b"\x1b\\end", b"end"),
        (b"\x1b[" + b"1" * 200 + b"mend", b"[" + b"1" * 200 + b"mend"),
        (b"\xc3(\xff\xe2\x82end", "\ufffd(\ufffd\ufffd\ufffdend".encode()),
        (b"\xed\xa0\x80\xc0\xaf", 5 * "\ufffd".encode()),
        (b"no end\x1b]0;tit", b"no end"),
    ],
    ids=range(9),
)
def test_malformed_sequences_are_left_out(data: bytes, expected: bytes) -> None:
    assert through(data)[0] == expected


def test_what_ends_a_session_passes_itself() -> None:
    assert through(RESET) == (RESET, 0)


@given(
    st.lists(st.sampled_from([*GOOD, *BAD]) | st.binary(max_size=20), max_size=5), st.integers(1, 7)
)
def test_pieces_do_not_matter(parts: list[bytes], size: int) -> None:
    data = b"".join(parts) + b"."
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert through(*pieces) == through(data)


@given(
    st.lists(
        st.binary(max_size=30)
        | recorded("client.terminal")
        | st.sampled_from([*BAD, b"\x1b", b"\x1b[", b"\x1b]", b"\x1bP", b"\x07", b"\x9b"]),
        max_size=8,
    )
)
def test_nothing_dangerous_passes_whatever_comes(pieces: list[bytes]) -> None:
    shown, _ = through(*pieces)
    assert not QUESTIONS.search(shown)
    rest = SEQUENCE.sub(b"", shown)
    assert b"\x1b" not in rest
    assert not set(rest.decode()) & set(map(chr, range(0x80, 0xA0)))
