"""A VMBus host's state in a saved machine.

Positions inside rings are not among it: a ring is taken up where its control page says, as when it
was opened. Who could change that page is the guest, which hurts itself only.
"""

from typing import Annotated, Any, Self

import msgspec

from teuthis.worker.vmbus.gpadl import GpadlState
from teuthis.worker.vmbus.ring import COMPLETION, GPA_DIRECT, IN_BAND, Packet

Relid = Annotated[int, msgspec.Meta(ge=1, lt=2048)]
Number = Annotated[int, msgspec.Meta(ge=0)]


class PacketState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A packet of the guest's that its device has taken from the ring and not handled yet."""

    type: int
    flags: Number
    transaction: Number
    header: bytes
    payload: bytes

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no ring gives."""
        if self.type not in (IN_BAND, GPA_DIRECT, COMPLETION):
            raise ValueError("a packet that is none")

    @classmethod
    def of(cls, packet: Packet) -> Self:
        """The state of a packet."""
        header, payload = bytes(packet.header), bytes(packet.payload)
        return cls(packet.type, packet.flags, packet.transaction, header, payload)

    def packet(self) -> Packet:
        """The packet."""
        header, payload = memoryview(self.header), memoryview(self.payload)
        return Packet(self.type, self.flags, self.transaction, header, payload)


class ChannelState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One channel."""

    relid: Relid
    instance: bytes | None
    """Whose it is: the instance of a device that is there from the start, or None for a stream."""
    target_vp: int
    ring_gpadl: int | None
    downstream_page: int
    rescinded: bool
    finished: bool


class ServerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All channels and descriptions of memory."""

    version: int | None
    message_vp: int
    offers_requested: bool
    last_relid: Annotated[int, msgspec.Meta(ge=0, lt=2048)]
    channels: list[ChannelState]
    gpadls: list[GpadlState]
    devices: dict[bytes, dict[str, Any]]
    """Of the devices that are there from the start, by instance."""
