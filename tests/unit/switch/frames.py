"""Frames as hosts make them, for tests; every field may be told to lie."""

import ipaddress
import struct

MAC_A = bytes.fromhex("020000000001")
MAC_B = bytes.fromhex("020000000002")
BROADCAST = b"\xff" * 6


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


A, B = ip("10.126.8.1"), ip("10.126.8.2")
A6, B6 = ip("fe80::ff:fe00:1"), ip("fe80::ff:fe00:2")
ANY, ANY6 = bytes(4), bytes(16)


def ethernet(kind: int, payload: bytes, source: bytes = MAC_A, target: bytes = MAC_B) -> bytes:
    return target + source + struct.pack(">H", kind) + payload


def ipv4(
    source: bytes = A,
    target: bytes = B,
    payload: bytes = bytes(8),
    *,
    protocol: int = 17,
    first: int = 0x45,
    total: int | None = None,
    fragment: int = 0,
    mac: bytes = MAC_A,
    to: bytes = MAC_B,
) -> bytes:
    length = 4 * (first & 15) + len(payload) if total is None else total
    head = struct.pack(">BBHHHBBH", first, 0, length, 1, fragment, 64, protocol, 0)
    head += source + target + bytes(max(0, 4 * (first & 15) - 20))
    return ethernet(0x0800, head + payload, mac, to)


def ports(source: int, target: int, size: int = 8) -> bytes:
    return struct.pack(">HH", source, target).ljust(size, b"\0")


def arp(
    operation: int = 1,
    mac: bytes = MAC_A,
    address: bytes = A,
    *,
    target: bytes = B,
    source: bytes = MAC_A,
    head: bytes = struct.pack(">HHBB", 1, 0x0800, 6, 4),
    to: bytes = BROADCAST,
) -> bytes:
    body = head + struct.pack(">H", operation) + mac + address + bytes(6) + target
    return ethernet(0x0806, body + bytes(18), source, to)


def ipv6(
    source: bytes = A6,
    target: bytes = B6,
    payload: bytes = bytes(8),
    *,
    following: int = 17,
    length: int | None = None,
    first: int = 0x60,
) -> bytes:
    size = len(payload) if length is None else length
    head = struct.pack(">BxHHBB", first, 0, size, following, 255) + source + target
    return ethernet(0x86DD, head + payload)


def icmpv6(kind: int, body: bytes = bytes(4), source: bytes = A6, target: bytes = B6) -> bytes:
    return ipv6(source, target, struct.pack(">BBH", kind, 0, 0) + body, following=58)


def link_option(kind: int, mac: bytes = MAC_A, size: int = 1) -> bytes:
    return bytes([kind, size]) + mac
