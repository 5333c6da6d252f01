"""What the root side tells a switch: its configuration, and which VMs join.

The root side is trusted; requests are decoded strictly all the same. A request to join is one JSON
document in one datagram, with three descriptors: the VM's frame socket, its page of counters, and
the socket for the answer, which is 8 bytes.
"""

import enum
import struct
from typing import Annotated, Final, NamedTuple

import msgspec

from teuthis.flows import FLOWS
from teuthis.protocol import Descriptor

MAX_REQUEST: Final = FLOWS["switch.join"].max_bytes
_ANSWER = struct.Struct("<I4s")
ANSWER_BYTES: Final = _ANSWER.size

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM on a network.

    Attributes:
        mac: 6 bytes.
        mtu: largest payload of a frame; the same for all members of a network.
        address: its IPv4 address, 4 bytes; None: the switch picks a free one.
        bytes_rate: bytes a second that it may send.
        frames_rate: frames a second that it may send.
    """

    mac: Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
    mtu: Annotated[int, msgspec.Meta(ge=576, le=65520)]
    bytes_rate: Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]
    frames_rate: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    address: Annotated[bytes, msgspec.Meta(min_length=4, max_length=4)] | None = None


class Uplink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The way out of a switch that serves one VM on the user's network.

    Attributes:
        stream: the socket to passt.
        gateway: the IPv4 address that passt answers as.
        refused: networks that the VM must not reach: the host's own addresses and the like.
        host_ports: ports of the host's loopback that it may reach at the gateway's address.
        member, frames, counters: the VM.
    """

    stream: Descriptor
    gateway: Annotated[bytes, msgspec.Meta(min_length=4, max_length=4)]
    refused: list[str]
    host_ports: list[Port]
    member: Member
    frames: Descriptor
    counters: Descriptor


class SwitchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `python -m teuthis.switch --config-fd N` is given: one of the two.

    Attributes:
        requests: the datagram socket on which VMs join a named network.
        uplink: the way out of the user's network.
    """

    requests: Descriptor | None = None
    uplink: Uplink | None = None
    uid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)] | None = None
    allow_missing_walls: frozenset[str] = frozenset()

    def descriptors(self) -> list[int]:
        """All descriptors in here."""
        if self.uplink is not None:
            return [self.uplink.stream, self.uplink.frames, self.uplink.counters]
        return [] if self.requests is None else [self.requests]


class Outcome(enum.IntEnum):
    """How a request to join ended."""

    JOINED = 0
    MALFORMED = 1
    MAC_TAKEN = 2
    ADDRESS_TAKEN = 3
    FULL = 4
    OTHER_MTU = 5


class Answer(NamedTuple):
    """The answer to a request to join; `address` is the VM's IPv4 address."""

    outcome: Outcome
    address: bytes = bytes(4)

    def encode(self) -> bytes:
        """The packet."""
        return _ANSWER.pack(*self)

    @classmethod
    def decode(cls, packet: bytes) -> "Answer":
        """The answer in `packet`, which a switch that was taken over may have made.

        Raises:
            ValueError: none.
        """
        if len(packet) != _ANSWER.size:
            raise ValueError("an answer of the wrong size")
        outcome, address = _ANSWER.unpack(packet)
        return cls(Outcome(outcome), address)
