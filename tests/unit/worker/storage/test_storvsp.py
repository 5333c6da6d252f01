"""The storage channel: handshake, requests, and every packet that must not be believed."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from teuthis.worker.devices.storage.backend import SECTOR
from teuthis.worker.devices.storage.scsi import COMMANDS, Command
from teuthis.worker.devices.storage.storvsp import MAX_DISKS, Storvsp
from teuthis.worker.devices.storage.vstor import Direction
from teuthis.worker.memory import PAGE_SIZE
from teuthis.worker.vmbus.ring import COMPLETION, Outgoing

from ...recorded import recorded
from ..conftest import World
from .conftest import (
    BEGIN,
    END,
    EXECUTE,
    IN,
    NONE,
    OUT,
    QUERY_PROPERTIES,
    QUERY_VERSION,
    SIZE,
    Driver,
    make_file,
    memory_disk,
    page_list,
    srb,
)

INVALID_STATE = 0xC000_0184
READ, WRITE = 0x28, 0x2A
Attach = Callable[..., Driver]


def cdb10(code: int, sector: int, count: int) -> bytes:
    return struct.pack(">BxIxHx", code, sector, count)


@pytest.fixture
def driver(attach: Attach, tmp_path: Path) -> Driver:
    content = b"".join(bytes([i % 251]) * SECTOR for i in range(SIZE // SECTOR))
    first = make_file(tmp_path / "first", content)
    return attach(first, make_file(tmp_path / "second", b"second")).initialize()


def test_handshake(attach: Attach, tmp_path: Path) -> None:
    driver = attach(make_file(tmp_path / "disk"))
    assert driver.operation(BEGIN).status == 0
    for version in (0x0501, 0x0600, 0x0602):
        assert driver.operation(QUERY_VERSION, struct.pack("<H", version)).status == 0
    properties = driver.operation(QUERY_PROPERTIES)
    _, channels, _, flags, transfer, _ = struct.unpack_from("<IHHIIQ", properties.body)
    assert (channels, flags, transfer) == (0, 0, 1 << 20)
    assert driver.operation(END).status == 0
    assert not driver.rejected("storvsp.unknown")


def test_unknown_versions_are_refused(attach: Attach, tmp_path: Path) -> None:
    driver = attach(make_file(tmp_path / "disk"))
    driver.operation(BEGIN)
    for version in (0, 0x0500, 0x0603, 0xFFFF):
        answer = driver.operation(QUERY_VERSION, struct.pack("<H", version))
        assert answer.status == 0xC000_0059
    assert driver.operation(QUERY_PROPERTIES).status == INVALID_STATE, "nothing was agreed"
    assert driver.rejected("storvsp.query-protocol-version") == 4


def test_operations_out_of_order_are_refused(attach: Attach, tmp_path: Path) -> None:
    driver = attach(make_file(tmp_path / "disk"))
    for number in (END, QUERY_VERSION, QUERY_PROPERTIES, EXECUTE, 4, 5, 6):
        assert driver.operation(number).status == INVALID_STATE
    driver.operation(BEGIN)
    for number in (END, QUERY_PROPERTIES, EXECUTE, 4, 5, 6):
        assert driver.operation(number).status == INVALID_STATE
    driver.operation(QUERY_VERSION, struct.pack("<H", 0x0602))
    assert driver.operation(EXECUTE).status == INVALID_STATE
    driver.operation(END)
    for number in (END, QUERY_VERSION, QUERY_PROPERTIES):
        assert driver.operation(number).status == INVALID_STATE


def test_a_handshake_may_begin_anew(driver: Driver) -> None:
    assert driver.operation(BEGIN).status == 0
    assert driver.operation(EXECUTE).status == INVALID_STATE
    driver.initialize()
    assert driver.scsi(bytes(6)).srb_status == 1


def test_unknown_operations_are_refused(driver: Driver) -> None:
    for number in (0, 1, 2, 11, 12, 13, 99, 2**32 - 1):
        assert driver.operation(number).status == 0xC000_00BB
    assert driver.rejected("storvsp.unknown") == 8


def test_resets_are_answered(driver: Driver) -> None:
    for number in (4, 5, 6):
        assert driver.operation(number).status == 0


@pytest.mark.parametrize(
    ("payload", "header", "kind", "flags"),
    [
        (bytes(56), b"", 6, 1),
        (b"", b"", 6, 1),
        (bytes(64), b"", 6, 0),
        (bytes(64), b"", 11, 1),
        (bytes(56), page_list([1024], 512), 9, 1),
    ],
)
def test_packets_that_are_no_requests_end_the_channel(
    driver: Driver, payload: bytes, header: bytes, kind: int, flags: int
) -> None:
    driver.raw(payload, header, kind=kind, flags=flags)
    driver.world.guest.pump()
    assert driver.channel.gone
    assert driver.rejected("storvsp.unknown") == 1


def test_sectors_travel_between_disk_and_guest_memory(driver: Driver, tmp_path: Path) -> None:
    answer = driver.scsi(cdb10(READ, 500, 40), IN, 40 * SECTOR)
    assert (answer.srb_status, answer.scsi_status, answer.moved) == (1, 0, 40 * SECTOR)
    assert driver.memory[: 40 * SECTOR] == b"".join(
        bytes([i % 251]) * SECTOR for i in range(500, 540)
    )
    data = os.urandom(3 * PAGE_SIZE)
    memory = driver.world.memory
    for page, start in ((70, 0), (60, PAGE_SIZE), (90, 2 * PAGE_SIZE)):
        memory.bytes[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = data[start : start + PAGE_SIZE]
    header = page_list([70, 60, 90], 2 * PAGE_SIZE, 1024)
    answer = driver.scsi(cdb10(WRITE, 8, 16), OUT, 2 * PAGE_SIZE, header=header)
    assert answer.srb_status == 1
    at = 8 * SECTOR
    assert (tmp_path / "first").read_bytes()[at : at + 8192] == data[1024 : 1024 + 8192]


def test_two_disks(driver: Driver) -> None:
    assert driver.scsi(cdb10(READ, 0, 1), IN, SECTOR, lun=1).srb_status == 1
    assert driver.memory[:8] == b"second\0\0"


def test_luns_are_reported(driver: Driver) -> None:
    cdb = struct.pack(">BxB3xI2x", 0xA0, 0, 4096)
    answer = driver.scsi(cdb, IN, 4096)
    assert (answer.srb_status, answer.moved) == (1, 24)
    assert struct.unpack(">I4x8s8s", driver.memory[:24]) == (16, bytes(8), b"\0\1" + bytes(6))
    assert driver.scsi(struct.pack(">BxB3xI2x", 0xA0, 1, 4096), IN, 4096).moved == 8
    for choice, allocation in ((3, 4096), (0, 15)):
        cdb = struct.pack(">BxB3xI2x", 0xA0, choice, allocation)
        assert driver.scsi(cdb, IN, 4096).sense == (5, 0x24, 0)
    assert driver.scsi(cdb[:6], IN, 4096).srb_status == 6
    assert driver.scsi(cdb, OUT, 4096).srb_status == 6
    assert driver.rejected("scsi.report-luns") == 4


def test_absent_disks(driver: Driver) -> None:
    """As a real host: Linux takes other answers for a disk, or removes the disks there are."""
    inquiry = bytes((0x12, 0, 0, 0, 36, 0))
    report = struct.pack(">BxB3xI2x", 0xA0, 0, 4096)
    for path, target, lun in ((0, 0, 2), (0, 0, 255), (1, 0, 0), (0, 1, 0), (255, 255, 255)):
        answer = driver.scsi(inquiry, IN, 36, path=path, target=target, lun=lun)
        assert (answer.srb_status, answer.scsi_status) == (1, 0)
        assert driver.memory[0] == 0x7F
        answer = driver.scsi(report, IN, 4096, path=path, target=target, lun=lun)
        assert answer.srb_status == 1
        assert answer.moved == (24 if (path, target) == (0, 0) else 8)
        answer = driver.scsi(cdb10(READ, 0, 1), IN, SECTOR, path=path, target=target, lun=lun)
        assert (answer.srb_status, answer.scsi_status) == (0x84, 2)
        assert answer.sense == (5, 0x25, 0)


@pytest.mark.parametrize(
    ("payload", "header"),
    [
        (srb(bytes(6), size=51), b""),
        (srb(bytes(6), size=0), b""),
        (srb(bytes(6), cdb_length=0), b""),
        (srb(bytes(16), cdb_length=17), b""),
        (srb(bytes(16), cdb_length=255), b""),
        (srb(bytes(6), direction=3), b""),
        (srb(bytes(6), direction=255), b""),
        (srb(bytes(6), direction=NONE, length=8), page_list([1024], 8)),
        (srb(cdb10(READ, 0, 0), direction=IN, length=0), b""),
        (srb(cdb10(READ, 0, 1), direction=IN, length=SECTOR), b""),
        (srb(cdb10(READ, 0, 1), direction=OUT, length=SECTOR), page_list([1024], SECTOR)),
        (srb(cdb10(READ, 0, 2), direction=IN, length=SECTOR), page_list([1024], SECTOR)),
        (srb(cdb10(READ, 0, 1), direction=IN, length=1024), page_list([1024], 1024)),
        (srb(cdb10(READ, 0, 1)[:8], direction=IN, length=SECTOR), page_list([1024], SECTOR)),
    ],
)
def test_malformed_requests_are_invalid(driver: Driver, payload: bytes, header: bytes) -> None:
    answer = driver.ask(payload, header)
    assert (answer.status, answer.srb_status, answer.moved) == (0, 6, 0)
    assert driver.rejected("storvsp.execute-srb") == 1
    assert driver.scsi(cdb10(READ, 0, 1), IN, SECTOR).srb_status == 1, "the next one is served"


@pytest.mark.parametrize(
    "header",
    [
        page_list([1024], 511),
        page_list([1024], SECTOR, 4000),
        page_list([0], SECTOR),
        page_list([2048], SECTOR),
        page_list([2**64 - 1], SECTOR),
        page_list([], 0),
        page_list([1024, 1025], SECTOR),
        page_list([1024], SECTOR)[:-8],
        b"\0" * 8,
        struct.pack("<IIIIQIIQ", 0, 2, 256, 0, 1024, 256, 0, 1025),
        page_list([1024] * 257, (1 << 20) + 4096),
    ],
)
def test_memory_that_does_not_fit_is_invalid(driver: Driver, header: bytes) -> None:
    before = driver.world.memory.bytes[:]
    answer = driver.scsi(cdb10(READ, 500, 1), IN, SECTOR, header=header)
    assert answer.srb_status == 6
    ring = range(16, 40)  # what the simulator gave the channel
    after = driver.world.memory.bytes[:]
    for page in range(len(after) // PAGE_SIZE):
        at = page * PAGE_SIZE
        assert page in ring or before[at : at + PAGE_SIZE] == after[at : at + PAGE_SIZE]


def test_a_page_named_twice_gets_what_comes_last(driver: Driver) -> None:
    header = page_list([1024, 1024], 2 * PAGE_SIZE)
    assert driver.scsi(cdb10(READ, 0, 16), IN, 2 * PAGE_SIZE, header=header).srb_status == 1
    assert driver.memory[:SECTOR] == bytes([8]) * SECTOR


def test_one_turn_is_bounded(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    server = driver.world.server
    monkeypatch.setattr(driver.channel.guest.transport, "signal", lambda relid: None)
    for _ in range(40):
        driver.raw(srb(bytes(6)))
    turns = 0
    while server.doorbell(driver.channel.relid):
        turns += 1
        assert turns < 10
    assert turns == 2
    monkeypatch.undo()
    assert len(driver.answers()) == 40
    monkeypatch.setattr(driver.channel.guest.transport, "signal", lambda relid: None)
    pages = list(range(1024, 1024 + 256))
    for _ in range(3):
        payload = srb(cdb10(READ, 0, 2048), IN, 1 << 20)
        driver.raw(payload, page_list(pages, 1 << 20))
    assert server.doorbell(driver.channel.relid)
    assert driver.world.accepted("scsi.read") == 1, "so many bytes are a turn of their own"


def test_a_guest_that_collects_nothing_stops_only_itself(driver: Driver) -> None:
    half = driver.channel.inn
    sent = 0
    while driver.device._unsent is None:
        driver.raw(srb(bytes(6)))
        driver.world.transport.settle()
        sent += 1
        assert sent < 1000
    assert half.words[3], "it asks for room"
    first = driver.answers()
    assert len(first) == sent - 1
    driver.channel.guest.transport.signal(driver.channel.relid)
    assert len(driver.answers()) == 1
    assert driver.scsi(bytes(6)).srb_status == 1


def test_a_driver_that_leaves_and_returns(driver: Driver) -> None:
    driver.raw(srb(bytes(6)))
    driver.channel.guest.post(7, struct.pack("<I", driver.channel.relid))
    driver.world.transport.settle()
    driver.channel.do_open(9)
    assert driver.scsi(bytes(6)).status == INVALID_STATE
    driver.initialize()
    assert driver.scsi(bytes(6)).srb_status == 1


def test_errors_of_the_host_are_noted_once(driver: Driver, tmp_path: Path) -> None:
    os.truncate(tmp_path / "first", 0)
    for _ in range(5):
        assert driver.scsi(cdb10(READ, 0, 1), IN, SECTOR).sense == (3, 0x11, 0)
    assert driver.notes == ["disk 0: the file has become shorter"]


def test_the_limit_of_disks_fits_a_lun() -> None:
    assert MAX_DISKS <= 255


def requests() -> st.SearchStrategy[tuple[bytes, bytes]]:
    codes = st.one_of(
        st.sampled_from([0x00, 0x08, 0x0A, 0x12, 0x1A, 0x25, 0x28, 0x2A, 0x35, 0x42, 0x88, 0x8A,
                         0x93, 0x9E, 0xA0, 0xA8, 0xAA]),
        st.integers(0, 255),
    )  # fmt: skip
    cdbs = st.tuples(codes, st.binary(min_size=15, max_size=15)).map(
        lambda pair: bytes((pair[0],)) + pair[1]
    )
    lengths = st.one_of(st.sampled_from([0, 8, 24, SECTOR, 4096]), st.integers(0, 2**32 - 1))
    payloads = st.builds(
        srb,
        cdbs,
        st.integers(0, 3),
        lengths,
        path=st.integers(0, 1),
        target=st.integers(0, 1),
        lun=st.integers(0, 2),
        size=st.sampled_from([52, 52, 52, 51]),
        cdb_length=st.integers(0, 20),
    )
    pages = st.lists(st.one_of(st.integers(1024, 1040), st.integers(0, 2**64 - 1)), max_size=4)
    headers = st.builds(
        page_list, pages, st.one_of(lengths, st.integers(0, 16384)), st.integers(0, 4100)
    )
    made = st.tuples(payloads, st.one_of(st.just(b""), headers))
    return st.one_of(
        made, sensible_requests(), recorded(*(f"scsi.{name}" for name in SCSI)).map(with_data)
    )


def with_data(sent: bytes) -> tuple[bytes, bytes]:
    """A request as it was recorded, with pages of its own for its data."""
    (size,) = struct.unpack_from("<I", sent.ljust(64, b"\0"), 24)
    pages = list(range(1024, 1024 + min(-(-size // PAGE_SIZE), 512)))
    return sent[:64].ljust(64, b"\0"), page_list(pages, size) if pages else b""


SCSI = ("inquiry", "unit", "report-luns", "capacity", "mode-sense", "read", "write",
        "synchronize", "unmap")  # fmt: skip


def sensible_requests() -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Commands that a disk knows, with data where they belong; some fields are anything."""
    commands = st.sampled_from([*COMMANDS.items(), (0xA0, None), (0xB5, None)])

    def build(
        command: tuple[int, Command | None],
        fields: list[tuple[int, int]],
        size: int,
        lun: int,
        page: int,
    ) -> tuple[bytes, bytes]:
        code, known = command
        cdb = bytearray((code, *bytes((known.cdb_length if known else 12) - 1)))
        for at, value in fields:
            cdb[1 + at % (len(cdb) - 1)] = value
        direction = known.direction if known else Direction.IN
        if direction is Direction.NONE or size == 0:
            return srb(bytes(cdb), Direction.NONE, 0, lun=lun), b""
        return srb(bytes(cdb), direction, size, lun=lun), page_list([page], size, 0)

    return st.builds(
        build,
        commands,
        st.lists(st.tuples(st.integers(0, 15), st.integers(0, 255)), max_size=4),
        st.sampled_from([0, 8, 24, 36, SECTOR, SECTOR, 8 * SECTOR]),
        st.integers(0, 2),
        st.integers(1024, 1030),
    )


def reading(sectors: int, direction: int = IN, **lies: int) -> tuple[bytes, bytes]:
    """READ (10) from the disk's start."""
    cdb, size = struct.pack(">BBIBHB", 0x28, 0, 0, 0, sectors, 0), sectors * SECTOR
    pages = list(range(1024, 1024 + -(-size // PAGE_SIZE)))
    return srb(cdb, direction, size, **lies), page_list(pages, size)


@settings(max_examples=200, deadline=None)
@example([reading(2048), reading(8)], False)
@example([reading(8)] * 3, True)
@example([reading(8, cdb_length=6), reading(8, OUT)], False)
@given(st.lists(requests(), max_size=6), st.booleans())
def test_any_request_is_answered(series: list[tuple[bytes, bytes]], full: bool) -> None:
    """`full`: the guest claims to have left no room for an answer, for a while."""
    with memory_disk(b"first") as first, memory_disk(b"second") as second:
        driver = Driver(World(), [first, second]).initialize()
        half = driver.channel.inn
        if full:
            half.words[1] = (half.words[0] + 8) % half.size
        sent = {driver.raw(payload, header) for payload, header in series}
        driver.world.transport.settle()
        if full:
            assert half.words[3] or not series
            half.words[1] = half.words[0]
        found: set[int] = set()
        for _ in range(3):
            found |= driver.answers().keys()
            driver.channel.guest.transport.signal(driver.channel.relid)
        assert found == sent
        assert not driver.channel.rescinded


OPERATIONS = recorded(
    *("storvsp.begin-init", "storvsp.query-protocol-version", "storvsp.query-properties"),
    *("storvsp.end-init", "storvsp.execute-srb"),
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.binary(max_size=80) | OPERATIONS,
            st.binary(max_size=80).map(lambda header: header[: len(header) & ~7]),
            st.sampled_from([6, 9, 11]),
            st.integers(0, 3),
        ),
        max_size=8,
    )
)
def test_any_packets_are_answered_or_end_the_channel(
    packets: list[tuple[bytes, bytes, int, int]],
) -> None:
    with memory_disk() as disk:
        driver = Driver(World(), [disk])
        for payload, header, kind, flags in packets:
            transaction = driver.raw(payload, header, kind=kind, flags=flags)
            found = driver.answers()
            if not driver.channel.rescinded and transaction not in found:
                driver.world.guest.pump()
                assert driver.channel.gone
                return


# ---- saved machines ------------------------------------------------------------------------------


def successor(driver: Driver) -> Storvsp:
    """Another worker's device, which goes on from what this one saved."""
    device = driver.device
    other = Storvsp(
        driver.world.server, driver.world.memory, driver.world.counters, [], driver.notes.append
    )
    other._disks = device._disks
    other.restore(device.save(), None)
    return other


def test_requests_that_wait_are_part_of_the_state(driver: Driver) -> None:
    """More than one turn's worth is in the ring: some are served, the rest by the successor."""
    server = driver.world.server
    channel = server._channels[driver.channel.relid]
    asked = [
        driver.raw(srb(cdb10(READ, 0, 1), IN, SECTOR), page_list([1024], SECTOR)) for _ in range(40)
    ]
    assert driver.device.ready(channel)
    other = successor(driver)
    assert len(other._waiting) == 24
    channel.device = other
    while other.ready(channel):
        pass
    assert sorted(driver.answers()) == asked


def test_a_completion_without_room_is_part_of_the_state(driver: Driver) -> None:
    driver.device._unsent = Outgoing(bytes(64), COMPLETION, 7)
    assert successor(driver)._unsent == driver.device._unsent


_REQUEST = {"type": 6, "flags": 1, "transaction": 1, "header": b"", "payload": bytes(64)}


def test_a_request_that_waits_is_part_of_the_state(driver: Driver) -> None:
    driver.device.restore({**driver.device.save(), "waiting": [_REQUEST]}, None)
    assert successor(driver).save()["waiting"] == [_REQUEST]


@pytest.mark.parametrize(
    "change",
    [
        {"state": 4},
        {"state": "x"},
        {"more": 1},
        {"waiting": [{}]},
        {"waiting": [{**_REQUEST, "type": 11}]},
        {"waiting": [{**_REQUEST, "payload": bytes(8)}]},
        {"waiting": [{**_REQUEST, "transaction": -1}]},
        {"waiting": [{**_REQUEST, "flags": 0}]},
        {"unsent": [bytes(64)]},
        {"unsent": [b"", 1]},
    ],
)
def test_states_that_cannot_be_are_refused(driver: Driver, change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError)):
        driver.device.restore({**driver.device.save(), **change}, None)


_VALUES = st.recursive(
    st.none() | st.integers(-1, 1 << 64) | st.binary(max_size=80) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(state=_VALUES, waiting=_VALUES, unsent=_VALUES)
def test_any_state_is_taken_or_refused(state: Any, waiting: Any, unsent: Any) -> None:
    world = World()
    with memory_disk() as disk:
        driver = Driver(world, [disk]).initialize()
        waiting = [
            {**_REQUEST, "type": 9, "header": waiting, "payload": unsent},
            *(waiting if isinstance(waiting, list) else []),
        ]
        saved = {"state": state, "waiting": waiting, "unsent": unsent}
        try:
            driver.device.restore(saved, None)
        except (ValueError, msgspec.ValidationError):
            return
        driver.device.ready(world.server._channels[driver.channel.relid])
