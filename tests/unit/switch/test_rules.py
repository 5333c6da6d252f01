"""What a VM may send: its own addresses and nothing exotic; whatever comes, passed or refused."""

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.switch.rules import Refused, arp_request, check, ipv4, link_local, sender

from ..recorded import recorded
from . import frames as f
from .frames import A6, ANY, ANY6, B6, MAC_A, MAC_B, A, B

MTU = 1500
WHO = sender(MAC_A, IPv4Address(A))

GOOD = [
    f.ipv4(),
    f.ipv4(payload=bytes(1480)),
    f.ipv4(protocol=6, payload=bytes(20)),
    f.ipv4(first=0x46),
    f.ipv4(protocol=1, payload=b""),
    f.ipv4(protocol=1, payload=b"\x08" + bytes(7)),
    f.ipv4(protocol=1, payload=b"\5" + bytes(7), fragment=1),  # not a redirect: its middle
    f.ipv4(fragment=0x2000),
    f.ipv4(payload=b"x" * 8) + bytes(10),  # padding
    f.ipv4(ANY, b"\xff" * 4, f.ports(68, 67), to=f.BROADCAST),
    f.arp(),
    f.arp(2, to=MAC_B),
    f.arp(1, address=ANY),  # is this address taken?
    f.ipv6(),
    f.ipv6(following=6, payload=bytes(20)),
    f.icmpv6(128),
    f.icmpv6(133),
    f.icmpv6(133, bytes(4) + f.link_option(1)),
    f.icmpv6(133, bytes(4), source=ANY6),
    f.icmpv6(135, bytes(4) + B6 + f.link_option(1)),
    f.icmpv6(135, bytes(4) + A6, source=ANY6),
    f.icmpv6(136, bytes(4) + A6 + f.link_option(2)),
    f.ipv6(payload=b"\x3a\0\5\2\0\0\1\0" + b"\x8f" + bytes(27), following=0),
    f.ipv6(ANY6, payload=b"\x3a\0\5\2\0\0\1\0" + b"\x8f" + bytes(27), following=0),
]

SPOOFED = [
    f.ipv4(mac=MAC_B),
    f.ipv4(B),
    f.ipv4(ANY),
    f.ipv4(ANY, b"\xff" * 4, f.ports(68, 68)),
    f.ipv4(ANY, b"\xff" * 4, f.ports(67, 68)),
    f.ipv4(b"\x7f\0\0\1"),
    f.ipv4(b"\xff" * 4),
    f.arp(mac=MAC_B),
    f.arp(source=MAC_B),
    f.arp(address=B),
    f.arp(2, address=B),
    f.arp(2, address=ANY),
    f.ipv6(B6),
    f.ipv6(ANY6),
    f.ipv6(bytes(15) + b"\1"),
]

IPV4_CLAIMS = [
    f.ipv4(protocol=1, payload=b"\5\1" + bytes(26)),  # a redirect
    f.ipv4(protocol=1, payload=b"\5\1" + bytes(26), first=0x46),
    f.ipv4(protocol=1, payload=b"\5\1" + bytes(26), fragment=0x2000),
    f.ipv4(protocol=1, payload=b"\x09" + bytes(15)),  # a router
]

CLAIMS = [
    f.icmpv6(134, bytes(12)),  # a router
    f.icmpv6(137, bytes(36)),  # a redirect
    f.icmpv6(133, bytes(4) + f.link_option(1, MAC_B)),
    f.icmpv6(135, bytes(4) + B6 + f.link_option(1, MAC_B)),
    f.icmpv6(135, bytes(4) + B6 + f.link_option(2)),
    f.icmpv6(135, bytes(4) + B6 + f.link_option(1, size=0)),
    f.icmpv6(135, bytes(4) + B6 + f.link_option(1, size=2)),
    f.icmpv6(135, bytes(4) + B6 + f.link_option(1)[:4]),
    f.icmpv6(135, bytes(4) + B6 + f.link_option(14) + f.link_option(1, MAC_B)),
    f.icmpv6(136, bytes(4) + B6),
    f.icmpv6(136, bytes(4) + A6 + f.link_option(2, MAC_B)),
    f.icmpv6(136, bytes(4) + A6 + f.link_option(1)),
    f.icmpv6(136, bytes(4) + A6[:8]),
    f.icmpv6(136, bytes(4) + A6, source=B6),
    f.ipv6(payload=b"", following=58),
    # The same behind extension headers, where one does not look.
    f.ipv6(payload=b"\x3a\0\0\0\0\0\0\0" + b"\x86" + bytes(15), following=60),
    f.ipv6(payload=b"\x3a\0\0\0\0\0\0\0" + b"\x86" + bytes(15), following=0),
    f.ipv6(payload=b"\x3a\0\0\0\0\0\0\0" + b"\x88" + bytes(23), following=44),
    f.ipv6(payload=b"\x06\0\0\0\0\0\0\0" + bytes(20), following=0),
    f.ipv6(payload=b"\x3a\xff\0\0\0\0\0\0" + b"\x8f", following=0),
    f.ipv6(payload=b"\x3a\0", following=0),
    f.ipv6(payload=b"\x3a\0\5\2\0\0\1\0" + b"\x8f\0\0", following=0),
]

MALFORMED = [
    b"",
    MAC_B + MAC_A + b"\x08",
    f.ethernet(0x0800, b""),
    f.ethernet(0x0800, f.ipv4()[14:33]),
    f.ipv4(first=0x44),
    f.ipv4(first=0x4F, total=30),
    f.ipv4(first=0x55),
    f.ipv4(total=19),
    f.ipv4(total=29),
    f.ipv4(total=65535),
    f.ipv4(payload=bytes(7)),
    f.ipv4(protocol=6, payload=bytes(3)),
    f.ethernet(0x0806, f.arp()[14:41]),
    f.arp(0),
    f.arp(3),
    f.arp(head=struct.pack(">HHBB", 6, 0x0800, 6, 4)),
    f.arp(head=struct.pack(">HHBB", 1, 0x86DD, 6, 4)),
    f.arp(head=struct.pack(">HHBB", 1, 0x0800, 6, 16)),
    f.ethernet(0x86DD, f.ipv6()[14:53]),
    f.ipv6(first=0x40),
    f.ipv6(length=9),
    f.ipv6(following=59),
    f.ethernet(0x8100, b"\0\1" + f.ipv4()[12:]),  # a VLAN tag
    f.ethernet(0x88A8, bytes(60)),
    f.ethernet(0x88CC, bytes(60)),
    f.ethernet(0x0026, bytes(60)),  # 802.3 with a length
    f.ipv4(payload=bytes(MTU - 19)),
]


@pytest.mark.parametrize("frame", GOOD, ids=bytes.hex)
def test_what_a_vm_may_send(frame: bytes) -> None:
    check(frame, WHO, MTU + 14)


@pytest.mark.parametrize("frame", SPOOFED, ids=bytes.hex)
def test_spoofed_addresses(frame: bytes) -> None:
    with pytest.raises(Refused):
        check(frame, WHO, MTU + 14)


@pytest.mark.parametrize("frame", IPV4_CLAIMS, ids=bytes.hex)
def test_ipv4_claims(frame: bytes) -> None:
    with pytest.raises(Refused):
        check(frame, WHO, MTU + 14)


@pytest.mark.parametrize("frame", CLAIMS, ids=bytes.hex)
def test_ipv6_claims(frame: bytes) -> None:
    with pytest.raises(Refused):
        check(frame, WHO, MTU + 14)


@pytest.mark.parametrize("frame", MALFORMED, ids=bytes.hex)
def test_malformed_frames(frame: bytes) -> None:
    with pytest.raises(Refused):
        check(frame, WHO, MTU + 14)


def test_the_ipv6_address_follows_from_the_mac() -> None:
    assert link_local(MAC_A) == A6
    assert link_local(MAC_B) == B6


def test_our_own_question_may_pass() -> None:
    check(arp_request(MAC_A, A, B), WHO, MTU + 14)


def test_ports_of_a_fragment_are_not_believed() -> None:
    packet = ipv4(f.ipv4(fragment=1, payload=f.ports(68, 67)))
    assert packet is not None
    assert packet.fragment
    assert packet.destination_port is None


def as_ours(frame: bytes) -> bytes:
    """A frame of the VM that was recorded, with the addresses of the one here."""
    if len(frame) < 14:
        return frame
    mac, address = frame[6:12], IPv4Address("10.126.7.2").packed
    frame = frame.replace(mac, MAC_A).replace(address, A)
    return frame.replace(link_local(mac)[8:], A6[8:])


SENT = recorded("network.from-worker").map(as_ours)


@given(
    st.one_of(
        st.binary(max_size=200),
        SENT,
        st.tuples(
            st.sampled_from(GOOD + CLAIMS),
            st.lists(st.tuples(st.integers(12, 90), st.integers(0, 255)), max_size=4),
            st.integers(0, 120),
        ).map(lambda made: damaged(*made)),
    )
)
def test_any_frame_is_passed_or_refused(frame: bytes) -> None:
    try:
        check(frame, WHO, MTU + 14)
    except Refused:
        return
    assert frame[6:12] == MAC_A
    kind = frame[12:14]
    if kind == b"\x08\x00":
        assert frame[26:30] in (A, ANY)
    elif kind == b"\x08\x06":
        assert (frame[22:28], frame[28:32] in (A, ANY)) == (MAC_A, True)
    else:
        assert frame[22:38] in (A6, ANY6)


def damaged(frame: bytes, changes: list[tuple[int, int]], length: int) -> bytes:
    """A good frame with some bytes of other values, and cut."""
    data = bytearray(frame)
    for at, value in changes:
        if at < len(data):
            data[at] = value
    return bytes(data[: max(length, 14)] if length else data)


def test_another_vms_addresses_are_not_ones_own() -> None:
    assert B not in WHO.addresses
    assert B6 not in WHO.addresses
