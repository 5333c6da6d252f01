"""The control socket's packets: what is accepted, and each kind of bad packet."""

import contextlib
import struct

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from teuthis import protocol
from teuthis.protocol import (
    DiskConfig,
    Ended,
    Exec,
    Health,
    LayerConfig,
    NetworkConfig,
    ProtocolError,
    SavedMachine,
    Snapshot,
    Status,
    StatusKind,
    Stop,
    Template,
    WorkerConfig,
)


def test_requests_survive_the_round_trip() -> None:
    request = Exec(id=7, argv=["sh", "-c", "true"], env={"A": "b"}, cwd="/", user="app:staff")
    assert protocol.decode_request(protocol.encode_request(request), 3) == request
    assert protocol.decode_request(protocol.encode_request(Stop()), 0) == Stop()


def test_a_keeper_is_asked_for_more_than_a_worker() -> None:
    packet = protocol.encode_request(Snapshot(7, "/tmp/saved"))
    assert protocol.decode_keeper_request(packet, 1) == Snapshot(7, "/tmp/saved")
    assert protocol.decode_keeper_request(protocol.encode_request(Stop()), 0) == Stop()
    with pytest.raises(ProtocolError, match="0 descriptors with Snapshot"):
        protocol.decode_keeper_request(packet, 0)
    with pytest.raises(ProtocolError):
        protocol.decode_request(packet, 1)


@pytest.mark.parametrize("path", ["", "relative", "../up", "/nul\0", "/" + 4096 * "x"])
def test_paths_that_mean_nothing_to_a_keeper_are_refused(path: str) -> None:
    packet = protocol.encode_request(Snapshot(7, path))
    with pytest.raises(ProtocolError, match="malformed"):
        protocol.decode_keeper_request(packet, 1)


def test_request_with_wrong_descriptors_is_refused() -> None:
    with pytest.raises(ProtocolError, match="1 descriptors with Stop"):
        protocol.decode_request(protocol.encode_request(Stop()), 1)


@pytest.mark.parametrize("packet", [b"", b"\xc0", b"\x81\xa4type\xa4nope", b"\x80" * 100])
def test_malformed_request_is_refused(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(packet, 0)


@pytest.mark.parametrize("user", ["", "x" * 257])
def test_a_user_that_no_guest_has_is_refused(user: str) -> None:
    packet = protocol.encode_request(Exec(id=1, argv=["x"], env={}, cwd="/", user=user))
    with pytest.raises(ProtocolError, match="malformed"):
        protocol.decode_request(packet, 3)


def test_request_too_large_to_send_is_refused() -> None:
    with pytest.raises(ProtocolError, match="shorten"):
        protocol.encode_request(Exec(id=1, argv=["x" * 200_000], env={}, cwd="/"))


@pytest.mark.parametrize(
    "status",
    [
        Status(StatusKind.READY),
        Status(StatusKind.STARTED, 3, 120),
        Status(StatusKind.EXITED, 3, 255),
        Status(StatusKind.EXITED, 3, 0, 9),
        Status(StatusKind.FAILED, 3, 2),
        Status(StatusKind.DONE, 3, 1 << 40),
        Status(StatusKind.ENDED, 0, Ended.GUEST_CRASH),
        Status(StatusKind.HEALTH, 0, Health.HUNG),
    ],
)
def test_statuses_survive_the_round_trip(status: Status) -> None:
    assert Status.decode(status.encode()) == status


@pytest.mark.parametrize(
    "fields",
    [
        (2, 1, 0, 0, 0, 0),
        (1, 0, 0, 0, 0, 0),
        (1, 8, 0, 0, 0, 0),
        (1, 7, 0, 3, 0, 0),
        (1, 7, 1, 1, 0, 0),
        (1, 1, 0, 0, 0, 1),
        (1, 1, 5, 0, 0, 0),
        (1, 2, 1, 0, 0, 0),
        (1, 3, 1, 256, 0, 0),
        (1, 3, 1, 0, 65, 0),
        (1, 4, 1, 0, 0, 0),
        (1, 5, 1, -1, 0, 0),
        (1, 6, 0, 99, 0, 0),
    ],
)
def test_hostile_status_is_refused(fields: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError):
        Status.decode(struct.pack("<HHIqqQ", *fields))


@given(st.binary(max_size=64))
def test_any_bytes_give_a_status_or_a_protocol_error(packet: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert Status.decode(packet).encode() == packet


texts = st.text(max_size=8)
numbers = st.integers(-1, 1 << 33)
packets = st.builds(
    lambda kind, fields: msgspec.msgpack.encode({"type": kind, **fields}),
    st.sampled_from([kind.__struct_config__.tag for kind in protocol.DESCRIPTORS]) | texts,
    st.dictionaries(
        st.sampled_from(
            ["id", "argv", "env", "cwd", "user", "path", "mode", "number", "rows", "columns"]
        ),
        st.one_of(numbers, texts, st.lists(texts), st.dictionaries(texts, texts), st.binary()),
    ),
)


REQUESTS: list[protocol.Request] = [
    protocol.Exec(id=1, argv=["x"], env={"A": "b"}, cwd="/"),
    protocol.ReadFile(id=2, path="/x"),
    protocol.Facts(id=3),
    protocol.Stop(),
]
real = st.sampled_from([protocol.encode_request(each) for each in REQUESTS])


@example(bytes(protocol.MAX_REQUEST + 1), 0)
@example(protocol.encode_request(REQUESTS[0]), 3)
@example(protocol.encode_request(REQUESTS[0]), 2)
@given(st.one_of(packets, st.binary(max_size=100), real), st.integers(0, 3))
def test_any_request_is_decoded_or_refused(packet: bytes, descriptors: int) -> None:
    with contextlib.suppress(ProtocolError):
        request = protocol.decode_request(packet, descriptors)
        assert protocol.DESCRIPTORS[type(request)] == descriptors
    with contextlib.suppress(ProtocolError):
        asked = protocol.decode_keeper_request(packet, descriptors)
        assert protocol.DESCRIPTORS[type(asked)] == descriptors


def test_a_configuration_is_renumbered_as_a_whole() -> None:
    config = WorkerConfig(
        memory=10,
        memory_size=4096,
        link=11,
        doorbells=12,
        to_worker=13,
        to_hypervisor=14,
        counters=15,
        control=16,
        console=17,
        network=NetworkConfig(frames=18, mac=bytes(6), mtu=1500),
        disks=(
            DiskConfig(file=19, size=512, writable=False, punches=False),
            DiskConfig(
                file=20,
                size=512,
                writable=True,
                punches=True,
                layer=LayerConfig(file=21, limit=0, kept=True, lower=22),
            ),
        ),
        saved=SavedMachine(23, Template(memory=24, pages=25), news="what is new"),
    )
    before = config.descriptors()
    assert sorted(before) == list(range(10, 26))
    after = config.renumbered([100 + each for each in before])
    assert after.descriptors() == [100 + each for each in before]
    assert after.renumbered(before) == config
    with pytest.raises(ValueError, match="argument"):
        config.renumbered(before[1:])
