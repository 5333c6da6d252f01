"""Sockets, and descriptors that travel over them (unix(7)).

The kernel's interface alone: the module `socket` begins with enumerations of all its constants,
which takes longer than a worker takes to be born.
"""

import struct
from _socket import CMSG_LEN, SCM_RIGHTS, SOL_SOCKET, socket
from collections.abc import Sequence

__all__ = ["receive", "send", "socket"]

_BYTES = 4
"""Of a descriptor's number."""


def receive(source: socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """A packet of at most `size` bytes, and the descriptors with it, at most so many."""
    data, ancillary, _, _ = source.recvmsg(size, CMSG_LEN(most * _BYTES))
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            whole = len(content) // _BYTES  # the kernel cuts off what has no room
            descriptors += struct.unpack_from(f"{whole}i", content)
    return data, descriptors


def send(target: socket, data: bytes, descriptors: Sequence[int]) -> None:
    """Sends a packet with copies of descriptors."""
    numbers = struct.pack(f"{len(descriptors)}i", *descriptors)
    target.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, numbers)])
