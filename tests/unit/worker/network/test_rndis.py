"""RNDIS messages: what Linux sends is understood, what lies is refused, nothing leaks."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from teuthis.flows import Counters
from teuthis.worker.devices.network.rndis import (
    MAX_BATCH,
    MAX_CONTROL,
    NOT_SUPPORTED,
    PACKET_OVERHEAD,
    Adapter,
    RndisError,
    envelope,
    frame,
    split,
)

from ...recorded import recorded

MAC = bytes.fromhex("02aabbccddee")
MTU = 1500
FRAME = bytes(range(60))
MAC_OID, FILTER, HARDWARE, PARAMETERS = 0x0101_0101, 0x0001_010E, 0xFC01_020D, 0xFC01_020C


def message(number: int, *words: int, tail: bytes = b"", length: int | None = None) -> bytes:
    body = struct.pack(f"<{len(words)}I", *words) + tail
    return struct.pack("<II", number, 8 + len(body) if length is None else length) + body


def packet(
    data: bytes = FRAME,
    *,
    offset: int | None = None,
    length: int | None = None,
    oob: tuple[int, int, int] = (0, 0, 0),
    information: bytes = b"",
    information_at: int | None = None,
    information_length: int | None = None,
    rest: tuple[int, int] = (0, 0),
) -> memoryview:
    """A PACKET message as Linux makes it; its parts may be told to lie."""
    size = len(information)
    return memoryview(
        message(
            1,
            36 + size if offset is None else offset,
            len(data) if length is None else length,
            *oob,
            (36 if size else 0) if information_at is None else information_at,
            size if information_length is None else information_length,
            *rest,
            tail=information + data,
        )
    )


def ppi(kind: int, data: bytes = bytes(4), size: int | None = None, offset: int = 12) -> bytes:
    return struct.pack("<III", 12 + len(data) if size is None else size, kind, offset) + data


def request(number: int, oid: int, data: bytes = b"", **lies: int) -> bytes:
    """QUERY or SET."""
    return message(
        number,
        7,
        oid,
        lies.get("length", len(data)),
        lies.get("offset", 20 if data else 0),
        lies.get("circuit", 0),
        tail=data,
    )


@pytest.fixture
def adapter() -> Adapter:
    made = Adapter(MAC, MTU, Counters())
    ask(made, message(2, 1, 1, 0, 0x4000))
    return made


def ask(adapter: Adapter, raw: bytes) -> bytes:
    (number,) = struct.unpack_from("<I", raw)
    answer = adapter.control(number, memoryview(raw))
    assert answer is not None
    assert struct.unpack_from("<II", answer) == (number | 1 << 31, len(answer))
    return answer[8:]


def value(adapter: Adapter, oid: int, data: bytes = b"") -> bytes:
    answer = ask(adapter, request(4, oid, data))
    identity, status, length, offset = struct.unpack_from("<4I", answer)
    assert (identity, status, offset, len(answer)) == (7, 0, 16, 16 + length)
    return answer[offset:]


def status(adapter: Adapter, raw: bytes) -> int:
    identity, found = struct.unpack_from("<2I", ask(adapter, raw))
    assert identity == 7
    return int(found)


# ---- frames --------------------------------------------------------------------------------------


def test_frame_of_linux() -> None:
    assert frame(packet(), MTU + 14) == FRAME
    assert frame(packet(bytes(MTU + 14)), MTU + 14) == bytes(MTU + 14)
    assert frame(memoryview(envelope(60) + FRAME), MTU + 14) == FRAME


LIES = [
    packet()[: PACKET_OVERHEAD - 1],
    packet(offset=35),
    packet(offset=37),
    packet(offset=2**32 - 1),
    packet(offset=2**32 - 60, length=96),
    packet(length=61),
    packet(length=13),
    packet(length=0),
    packet(length=2**32 - 1),
    packet(bytes(MTU + 15)),
    packet(oob=(36, 0, 0)),
    packet(oob=(0, 4, 0)),
    packet(oob=(0, 0, 1)),
    packet(rest=(1, 0)),
    packet(rest=(0, 1)),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.hex()[:80])
def test_frames_that_lie(lie: memoryview) -> None:
    with pytest.raises(RndisError) as caught:
        frame(lie, MTU + 14)
    assert caught.value.flow == "rndis.packet"


def test_packet_information() -> None:
    assert frame(packet(information=ppi(9) + ppi(9)), MTU + 14) == FRAME


@pytest.mark.parametrize(
    "information",
    [
        ppi(0),  # a checksum left open
        ppi(2),  # a large frame to be cut
        ppi(6),  # a VLAN tag
        ppi(9 | 1 << 31),
        ppi(9)[:11],
        ppi(9, size=13),
        ppi(9, size=0),
        ppi(9, size=20),
        ppi(9, size=2**32 - 4),
        ppi(9, offset=11),
        ppi(9, offset=17),
        ppi(9) * 9,
    ],
    ids=lambda raw: raw.hex()[:40],
)
def test_packet_information_that_lies(information: bytes) -> None:
    with pytest.raises(RndisError):
        frame(packet(information=information), MTU + 14)


@pytest.mark.parametrize(
    ("at", "length"), [(35, 16), (36, 17), (40, 16), (2**32 - 1, 16), (36, 2**32 - 1), (0, 16)]
)
def test_packet_information_outside_its_place(at: int, length: int) -> None:
    with pytest.raises(RndisError):
        frame(packet(information=ppi(9), information_at=at, information_length=length), MTU + 14)


def test_several_messages_in_one_packet() -> None:
    one = bytes(packet(bytes(61)))
    padded = one + bytes(-len(one) % 8)
    assert [number for number, _ in split(padded * 2 + one)] == [1, 1, 1]
    assert [len(each) for _, each in split(padded + one)] == [len(one)] * 2
    assert len(list(split(padded * MAX_BATCH))) == MAX_BATCH
    with pytest.raises(RndisError):
        list(split(padded * (MAX_BATCH + 1)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1\0\0\0\x07\0\0",
        message(1, length=7),
        message(1, length=9),
        message(1, length=0),
        message(1, length=2**32 - 1),
        message(3, 1) + b"\0\0\0\0\0",
    ],
    ids=lambda raw: raw.hex(),
)
def test_lengths_that_lie(raw: bytes) -> None:
    with pytest.raises(RndisError) as caught:
        list(split(raw))
    assert caught.value.flow == "rndis.unknown"


# ---- control -------------------------------------------------------------------------------------


def test_initialize(adapter: Adapter) -> None:
    words = struct.unpack("<11I", ask(adapter, message(2, 5, 1, 0, 0x4000)))
    identity, found, major, minor, flags, medium, packets, transfer, alignment, *rest = words
    assert (identity, found, major, minor, flags, medium) == (5, 0, 1, 0, 1, 0)
    assert packets == MAX_BATCH
    assert transfer >= 65520 + PACKET_OVERHEAD
    assert alignment == 3
    assert rest == [0, 0]


def test_other_version() -> None:
    adapter = Adapter(MAC, MTU, Counters())
    assert struct.unpack_from("<2I", ask(adapter, message(2, 5, 2, 0, 0)))[1] == NOT_SUPPORTED
    assert status(adapter, request(4, MAC_OID)) == NOT_SUPPORTED
    assert status(adapter, request(5, FILTER, bytes(4))) == NOT_SUPPORTED


def test_what_linux_asks(adapter: Adapter) -> None:
    assert value(adapter, MAC_OID) == MAC
    assert value(adapter, 0x0101_0102) == MAC
    assert value(adapter, 0x0001_0106) == struct.pack("<I", MTU)
    assert value(adapter, 0x0001_0114) == bytes(4)
    assert value(adapter, 0x0001_0107) != bytes(4)
    assert value(adapter, 0x0002_0216).decode("utf-16-le") == "teuthis"
    for revision, size in ((1, 112), (2, 144), (3, 156)):
        asked = struct.pack("<BBH", 0xA7, revision, size).ljust(size, b"\xff")
        assert value(adapter, HARDWARE, asked) == asked[:4] + bytes(size - 4)
    assert status(adapter, request(5, PARAMETERS, bytes(20))) == 0


@pytest.mark.parametrize("oid", [0, 0x0001_0203, 0x0001_0204, 0xFFFF_FFFF])
def test_unknown_objects(adapter: Adapter, oid: int) -> None:
    assert status(adapter, request(4, oid)) == NOT_SUPPORTED
    assert status(adapter, request(5, oid, bytes(4))) == NOT_SUPPORTED


@pytest.mark.parametrize("asked", [b"", b"\xa7\1\x70", b"\xa7\0\x70\0", b"\xa7\4\x70\0", bytes(4)])
def test_offloads_of_no_known_revision(adapter: Adapter, asked: bytes) -> None:
    assert status(adapter, request(4, HARDWARE, asked)) == NOT_SUPPORTED


def test_packet_filter(adapter: Adapter) -> None:
    assert not adapter.receiving
    assert status(adapter, request(5, FILTER, struct.pack("<I", 0xB))) == 0
    assert adapter.receiving
    assert value(adapter, FILTER) == struct.pack("<I", 0xB)
    assert status(adapter, request(5, FILTER, bytes(3))) != 0
    assert adapter.receiving
    assert status(adapter, request(5, FILTER, bytes(4))) == 0
    assert not adapter.receiving


def test_mac_address_stays(adapter: Adapter) -> None:
    assert status(adapter, request(5, 0x0001_021B, bytes(64))) == NOT_SUPPORTED
    assert value(adapter, MAC_OID) == MAC


@pytest.mark.parametrize("number", [4, 5])
@pytest.mark.parametrize(
    "lies",
    [
        {"offset": 19},
        {"offset": 21},
        {"offset": 2**32 - 1},
        {"length": 5},
        {"length": 2**32 - 1},
        {"offset": 2**32 - 4, "length": 8},
        {"circuit": 1},
    ],
    ids=str,
)
def test_requests_that_lie(adapter: Adapter, number: int, lies: dict[str, int]) -> None:
    with pytest.raises(RndisError):
        adapter.control(number, memoryview(request(number, FILTER, bytes(4), **lies)))
    assert not adapter.receiving


def test_keepalive(adapter: Adapter) -> None:
    assert ask(adapter, message(8, 99)) == struct.pack("<II", 99, 0)


def test_halt_forgets(adapter: Adapter) -> None:
    assert status(adapter, request(5, FILTER, struct.pack("<I", 0xB))) == 0
    assert adapter.control(3, memoryview(message(3, 1))) is None
    assert not adapter.receiving
    assert not adapter.initialized


@pytest.mark.parametrize(
    "raw",
    [
        message(1, 0),
        message(6, 0),
        message(7, 0x4001_000B, 0, 0),
        message(0x8000_0002, 1, 0),
        message(2, 1, 1, 0),
        message(4, 1, 2, 0, 0, 0, tail=bytes(MAX_CONTROL)),
        message(8),
    ],
    ids=lambda raw: raw.hex()[:32],
)
def test_unknown_messages(adapter: Adapter, raw: bytes) -> None:
    with pytest.raises(RndisError):
        adapter.control(struct.unpack_from("<I", raw)[0], memoryview(raw))


words = st.one_of(
    st.sampled_from([0, 1, 4, 12, 16, 20, 28, 36, 44, 60, 2**31, 2**32 - 1, MAC_OID, HARDWARE]),
    st.integers(0, 2**32 - 1),
)


objects = st.sampled_from([0x0101_0101, 0x0101_0102, 0x0001_0106, 0x0001_0107, 0x0001_0114,
                           0x0001_010E, 0x0001_021B, HARDWARE, PARAMETERS]) | words  # fmt: skip
messages = st.one_of(
    recorded("rndis.initialize", "rndis.halt", "rndis.query", "rndis.set", "rndis.packet"),
    st.builds(lambda number, body: message(number, *body), st.integers(0, 10), st.lists(words)),
    st.builds(request, st.sampled_from([4, 5]), objects, st.binary(max_size=40)),
    st.builds(
        request,
        st.just(4),
        st.just(PARAMETERS),
        st.integers(0, 4).map(lambda revision: struct.pack("<BBH", 0xA7, revision, 0)),
    ),
    st.builds(
        lambda data, information, lies: bytes(packet(data, information=information, **lies)),
        st.binary(min_size=10, max_size=80),
        st.lists(st.builds(ppi, st.sampled_from([9, 0]), st.just(bytes(4))), max_size=3).map(
            b"".join
        ),
        st.dictionaries(
            st.sampled_from(["offset", "length", "information_at", "information_length"]), words
        ),
    ),
)


@example((message(8, 1) + bytes(4)) * (MAX_BATCH + 1), False)
@example(message(3, 1), False)
@example(bytes(packet(information=ppi(9))), True)
@example(bytes(packet(information=ppi(9), information_at=20)), True)
@given(st.lists(messages, min_size=1, max_size=3).map(b"".join), st.booleans())
def test_any_message_is_taken_or_refused(raw: bytes, data: bool) -> None:
    adapter = Adapter(MAC, MTU, Counters())
    ask(adapter, message(2, 1, 1, 0, 0x4000))
    try:
        for kind, part in split(raw):
            if data:
                assert len(part) >= len(frame(part, MTU + 14)) >= 14
            else:
                adapter.control(kind, part)
    except RndisError:
        pass
