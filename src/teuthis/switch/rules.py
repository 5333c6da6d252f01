"""What a VM may send: its own addresses at every layer that carries one, and nothing exotic.

Pure functions over one frame. Only Ethernet with ARP, IPv4 and IPv6 passes; a claim about who owns
an address (ARP, neighbour discovery) passes if it is the sender's own.
References: RFC 826, RFC 791, RFC 792, RFC 1256, RFC 8200, RFC 4861.
"""

import ipaddress
import struct
from typing import Final, NamedTuple

ETHERNET_BYTES: Final = 14
MULTICAST_BIT: Final = 1
BROADCAST: Final = b"\xff" * 6

_IPV4, _ARP, _IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
_ARP_HEAD = struct.pack(">HHBB", 1, 0x0800, 6, 4)
_ARP_REQUEST, _ARP_REPLY = b"\0\x01", b"\0\x02"
_ARP_END = ETHERNET_BYTES + 28

TCP: Final = 6
UDP: Final = 17
_FRAGMENT_OFFSET: Final = 0x1FFF
_ICMP = 1
_ICMP_REDIRECT, _ICMP_ROUTER_ADVERTISEMENT = 5, 9
_ICMPV6 = 58
_HOP_BY_HOP = 0
_ANY_V4 = bytes(4)
_ANY_V6 = bytes(16)

_MLD = frozenset({130, 131, 132, 143})
_ROUTER_SOLICITATION, _ROUTER_ADVERTISEMENT = 133, 134
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT, _REDIRECT = 135, 136, 137
_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 1, 2


class Refused(ValueError):
    """A frame that its sender may not send; `kind`: why, as the register names it."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Sender(NamedTuple):
    """Who a VM is on its network."""

    mac: bytes
    addresses: frozenset[bytes]
    """IPv4 (4 bytes) and IPv6 (16 bytes)."""


def link_local(mac: bytes) -> bytes:
    """The IPv6 address that a host makes of its MAC address (RFC 4291, appendix A)."""
    identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
    return b"\xfe\x80" + bytes(6) + identifier


def sender(mac: bytes, address: ipaddress.IPv4Address) -> Sender:
    """The sender with that MAC address, that IPv4 address, and the IPv6 one that follows."""
    return Sender(mac, frozenset({address.packed, link_local(mac)}))


def arp_request(mac: bytes, address: bytes, target: bytes) -> bytes:
    """Asks who has the IPv4 address `target`, and so says who asks."""
    ethernet = BROADCAST + mac + _ARP
    return ethernet + _ARP_HEAD + _ARP_REQUEST + mac + address + bytes(6) + target


def check(frame: bytes, who: Sender, max_frame: int) -> None:
    """Lets a frame of `who`'s pass. Raises `Refused`."""
    if not ETHERNET_BYTES <= len(frame) <= max_frame:
        raise Refused("size", "a frame of impossible size")
    if frame[6:12] != who.mac:
        raise Refused("mac", "not its own MAC address")
    judge = _CHECKS.get(frame[12:14])
    if judge is None:
        raise Refused("protocol", "a protocol that the switch does not carry")
    judge(frame, who)


def _check_arp(frame: bytes, who: Sender) -> None:
    if len(frame) < _ARP_END or frame[14:20] != _ARP_HEAD:
        raise Refused("header", "not ARP for IPv4 over Ethernet")
    if frame[20:22] not in (_ARP_REQUEST, _ARP_REPLY):
        raise Refused("header", "an unknown ARP operation")
    if frame[22:28] != who.mac:
        raise Refused("mac", "ARP for another MAC address")
    if frame[28:32] not in who.addresses and frame[20:22] + frame[28:32] != _ARP_REQUEST + _ANY_V4:
        raise Refused("address", "ARP for another IPv4 address")


class Ipv4(NamedTuple):
    """The fields of an IPv4 packet that decide; ports are None where there are none to see."""

    source: bytes
    destination: bytes
    protocol: int
    fragment: bool
    source_port: int | None
    destination_port: int | None


def ipv4(frame: bytes) -> Ipv4 | None:
    """The packet in a frame; None: another protocol. Raises `Refused`."""
    if frame[12:14] != _IPV4:
        return None
    if len(frame) < ETHERNET_BYTES + 20:
        raise Refused("header", "an IPv4 header cut short")
    head = 4 * (frame[14] & 15)
    total = int.from_bytes(frame[16:18])
    if frame[14] >> 4 != 4 or not 20 <= head <= total <= len(frame) - ETHERNET_BYTES:
        raise Refused("header", "an IPv4 header that lies")
    fragment = bool(int.from_bytes(frame[20:22]) & 0x3FFF)
    ports: tuple[int | None, int | None] = (None, None)
    if frame[23] in (TCP, UDP) and not fragment:
        at = ETHERNET_BYTES + head
        if total < head + 8:
            raise Refused("header", "a transport header cut short")
        ports = struct.unpack_from(">HH", frame, at)
    return Ipv4(frame[26:30], frame[30:34], frame[23], fragment, *ports)


def _check_ipv4(frame: bytes, who: Sender) -> None:
    packet = ipv4(frame)
    assert packet is not None
    if packet.protocol == _ICMP:
        _check_icmp(frame)
    if packet.source in who.addresses:
        return
    asks_for_address = (packet.protocol, packet.source_port, packet.destination_port) == (
        UDP,
        68,
        67,
    )
    if packet.source != _ANY_V4 or not asks_for_address:
        raise Refused("address", "not its own IPv4 address")


def _check_icmp(frame: bytes) -> None:
    # The first fragment has the type too; without it nobody puts the others together.
    begins = not int.from_bytes(frame[20:22]) & _FRAGMENT_OFFSET
    message = frame[ETHERNET_BYTES + 4 * (frame[14] & 15) :]
    if begins and message and message[0] in (_ICMP_REDIRECT, _ICMP_ROUTER_ADVERTISEMENT):
        raise Refused("router", "a VM is no router")


def _check_ipv6(frame: bytes, who: Sender) -> None:
    if len(frame) < ETHERNET_BYTES + 40 or frame[14] >> 4 != 6:
        raise Refused("header", "an IPv6 header cut short")
    end = ETHERNET_BYTES + 40 + int.from_bytes(frame[18:20])
    if end > len(frame):
        raise Refused("header", "an IPv6 header that lies")
    source, following = frame[22:38], frame[20]
    at = ETHERNET_BYTES + 40
    if following == _HOP_BY_HOP:
        # Listener reports carry a router alert; nothing else has a reason for an extension.
        if end < at + 8 or frame[at] != _ICMPV6:
            raise Refused("extension", "an IPv6 extension")
        at += 8 + 8 * frame[at + 1]
        if end < at + 4 or frame[at] not in _MLD:
            raise Refused("extension", "an IPv6 extension")
    elif following == _ICMPV6:
        _check_icmpv6(frame[at:end], who)
    elif following not in (TCP, UDP):
        raise Refused("extension", "an IPv6 extension")
    if source not in who.addresses and (
        source != _ANY_V6 or following not in (_HOP_BY_HOP, _ICMPV6)
    ):
        raise Refused("address", "not its own IPv6 address")


def _check_icmpv6(message: bytes, who: Sender) -> None:
    if len(message) < 4:
        raise Refused("header", "ICMPv6 cut short")
    kind = message[0]
    if kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
        raise Refused("router", "a VM is no router")
    if kind == _ROUTER_SOLICITATION:
        _check_link_addresses(message[8:], _SOURCE_LINK_ADDRESS, who)
    elif kind == _NEIGHBOUR_SOLICITATION:
        _check_link_addresses(message[24:], _SOURCE_LINK_ADDRESS, who)
    elif kind == _NEIGHBOUR_ADVERTISEMENT:
        if message[8:24] not in who.addresses:
            raise Refused("address", "neighbour discovery for another IPv6 address")
        _check_link_addresses(message[24:], _TARGET_LINK_ADDRESS, who)


def _check_link_addresses(options: bytes, kind: int, who: Sender) -> None:
    while options:
        size = 8 * options[1] if len(options) > 1 else 0
        if not 8 <= size <= len(options):
            raise Refused("header", "a neighbour discovery option that lies")
        if options[0] in (_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS) and (
            options[0] != kind or size != 8 or options[2:8] != who.mac
        ):
            raise Refused("mac", "neighbour discovery for another MAC address")
        options = options[size:]


_CHECKS: Final = {_IPV4: _check_ipv4, _ARP: _check_arp, _IPV6: _check_ipv6}
