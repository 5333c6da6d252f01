"""An adapter in a saved machine: what its driver and it have agreed upon, and what is under way.

It may come from a worker that was taken over, and is judged like guest data.
"""

from typing import Annotated

import msgspec

from teuthis.flows import FLOWS
from teuthis.worker.devices.network import nvsp, rndis
from teuthis.worker.vmbus.saved import Number, PacketState

_CONTROLS_MAX = FLOWS["rndis.answer"].values["unsent_max"]

Control = Annotated[bytes, msgspec.Meta(max_length=rndis.MAX_CONTROL)]


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
