"""The partition link's messages, decoded from a hypervisor that may be hostile."""

import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.flows import Counters
from teuthis.protocol import Ended
from teuthis.worker import link
from teuthis.worker.ending import EndVM
from teuthis.worker.link import (
    ConsoleText,
    End,
    Incoming,
    Link,
    Note,
    Paused,
    PostMessage,
    State,
    Turn,
)

from ..recorded import recorded
from .process import MESSAGE


@pytest.mark.parametrize(
    ("packet", "flow", "expected"),
    [
        (
            MESSAGE.pack(1, 1, 3, 4 | 1 << 32, b"abc"),
            "link.post-message",
            PostMessage(4, 1, b"abc"),
        ),
        (
            MESSAGE.pack(1, 1, 240, 1, b"x" * 240),
            "link.post-message",
            PostMessage(1, 0, b"x" * 240),
        ),
        (MESSAGE.pack(1, 2, 256, 0, b"y" * 256), "link.console", ConsoleText(b"y" * 256)),
        (MESSAGE.pack(1, 4, 2, 0, "ä".encode()), "link.note", Note("ä")),
        (MESSAGE.pack(1, 3, 0, 1, b""), "link.end", End(Ended.POWER_OFF)),
        (MESSAGE.pack(1, 3, 0, 8, b""), "link.end", End(Ended.STATE_REFUSED)),
        (MESSAGE.pack(1, 5, 0, 0, b""), "link.paused", Paused()),
        (MESSAGE.pack(1, 6, 3, 9, b"abc"), "link.state", State(b"abc", 9)),
        (MESSAGE.pack(1, 7, 0, 9, b""), "link.turn", Turn(9)),
        (
            MESSAGE.pack(1, 3, 48, 4, struct.pack("<6Q", *range(6))),
            "link.end",
            End(Ended.GUEST_CRASH, (0, 1, 2, 3, 4, 5)),
        ),
    ],
)
def test_messages_of_the_hypervisor_are_decoded(
    packet: bytes, flow: str, expected: Incoming
) -> None:
    assert link.decode(packet) == (flow, expected)


@pytest.mark.parametrize(
    ("packet", "flow"),
    [
        (bytes(271), "link.unknown-to-worker"),
        (bytes(273), "link.unknown-to-worker"),
        (MESSAGE.pack(2, 1, 0, 1, b""), "link.unknown-to-worker"),
        (MESSAGE.pack(1, 16, 0, 0, b""), "link.unknown-to-worker"),
        (MESSAGE.pack(1, 1, 241, 1, bytes(256)), "link.post-message"),
        (MESSAGE.pack(1, 1, 0, 2, b""), "link.post-message"),
        (MESSAGE.pack(1, 1, 1, 1, b"ab"), "link.post-message"),
        (MESSAGE.pack(1, 2, 1, 1, b"a"), "link.console"),
        (MESSAGE.pack(1, 3, 0, 99, b""), "link.end"),
        (MESSAGE.pack(1, 3, 0, 4, b""), "link.end"),
        (MESSAGE.pack(1, 4, 1, 0, b"\xff"), "link.note"),
        (MESSAGE.pack(1, 4, 1, 1, b"x"), "link.note"),
        (MESSAGE.pack(1, 5, 1, 0, b"x"), "link.paused"),
        (MESSAGE.pack(1, 5, 0, 1, b""), "link.paused"),
        (MESSAGE.pack(1, 6, 257, 0, b""), "link.state"),
        (MESSAGE.pack(1, 7, 1, 0, b"x"), "link.turn"),
    ],
)
def test_a_refusal_names_what_was_pretended(packet: bytes, flow: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    counters = Counters()
    connection = Link(ours, counters, lambda: None)
    theirs.send(packet)
    with pytest.raises(EndVM) as caught:
        next(connection.receive())
    assert caught.value.reason is Ended.LINK_VIOLATION
    rejected = {name for name, count in counters.snapshot().items() if count.rejected}
    assert rejected == {flow}
    ours.close()
    theirs.close()


def test_messages_to_the_hypervisor_have_its_layout() -> None:
    assert link.encode(link.START) == MESSAGE.pack(1, 16, 0, 0, b"")
    assert link.encode(link.STOP) == MESSAGE.pack(1, 17, 0, 0, b"")
    delivered = link.encode(link.deliver(b"abc", 3))
    assert delivered == MESSAGE.pack(1, 18, 3, 2 | 3 << 8 | 1 << 32, b"abc")
    assert link.encode(link.open_port(0x2001)) == MESSAGE.pack(1, 19, 0, 0x2001, b"")
    assert link.encode(link.close_port(0x2001)) == MESSAGE.pack(1, 20, 0, 0x2001, b"")
    for number, message in ((21, link.PAUSE), (22, link.RESUME), (23, link.SAVE)):
        assert link.encode(message) == MESSAGE.pack(1, number, 0, 0, b"")
    with pytest.raises(ValueError, match="241"):
        link.encode(link.deliver(bytes(241), 0))


def test_the_last_words_of_a_hypervisor_that_left_messages_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Link(ours, Counters(), lambda: None)
    connection.send(link.START)
    connection.flush()
    theirs.send(MESSAGE.pack(1, 3, 0, 1, b""))
    theirs.close()  # START was not read: the next call on our end fails
    connection.send(link.STOP)
    connection.flush()
    messages = connection.receive()
    assert next(messages) == End(Ended.POWER_OFF)
    with pytest.raises(EndVM) as caught:
        next(messages)
    assert caught.value.reason is Ended.HYPERVISOR_DIED
    ours.close()


SENT = recorded("link.post-message", "link.console", "link.note", "link.end", "link.turn")
HEADERS = st.tuples(
    st.sampled_from([1, 1, 1, 0, 2]),
    st.integers(0, 21),
    st.sampled_from([0, 1, 48, 240, 241, 256, 257, 2**32 - 1]),
    st.sampled_from([0, 1, 4, 7, 8, 1 << 32 | 1, 2**64 - 1]),
)


@given(
    st.one_of(
        st.binary(max_size=300),
        SENT.map(lambda sent: sent.ljust(link.MESSAGE_BYTES, b"\0")),
        st.builds(
            lambda header, payload: MESSAGE.pack(*header, payload), HEADERS, st.binary(max_size=256)
        ),
    )
)
def test_any_packet_is_decoded_or_refused(packet: bytes) -> None:
    with suppress(ValueError):
        flow, message = link.decode(packet)
        assert flow.startswith("link.")
        assert isinstance(message, PostMessage | ConsoleText | Note | End | Paused | State | Turn)
