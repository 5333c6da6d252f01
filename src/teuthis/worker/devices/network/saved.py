"""An adapter in a saved machine: what its driver and it have agreed upon, and what is under way.

It may come from a worker that was taken over, and is judged like guest data.
"""

from typing import Annotated, Self

import msgspec

from teuthis.flows import FLOWS
from teuthis.worker.devices.network import nvsp, rndis
from teuthis.worker.vmbus.ring import COMPLETION, GPA_DIRECT, IN_BAND, Packet

_CONTROLS_MAX = FLOWS["rndis.answer"].values["unsent_max"]

Number = Annotated[int, msgspec.Meta(ge=0)]
Control = Annotated[bytes, msgspec.Meta(max_length=rndis.MAX_CONTROL)]


class PacketState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A packet of the guest's that was taken from the ring and not handled yet."""

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
        kind, flags, transaction, header, payload = packet
        return cls(kind, flags, transaction, bytes(header), bytes(payload))

    def packet(self) -> Packet:
        """The packet."""
        header, payload = memoryview(self.header), memoryview(self.payload)
        return Packet(self.type, self.flags, self.transaction, header, payload)


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of an adapter but what the machine that goes on has of its own."""

    mac: Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
    version: Number | None
    initialized: bool
    receive_buffer: Number | None
    """Handle of the memory, as `send_buffer`."""
    send_buffer: Number | None
    lent: dict[Number, list[Number]]
    """Sections of the receive buffer that the guest has, by the transaction that it completes."""
    next_transaction: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    packets: list[PacketState]
    controls: Annotated[list[Control], msgspec.Meta(max_length=_CONTROLS_MAX)]

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no adapter can have agreed upon."""
        if self.version not in (None, *nvsp.VERSIONS):
            raise ValueError("a version that was not offered")
        sections = [section for sections in self.lent.values() for section in sections]
        if len(sections) != len(set(sections)) or not all(self.lent.values()):
            raise ValueError("sections that are lent twice")
