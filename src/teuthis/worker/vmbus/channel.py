"""One offered channel and the device behind it."""

from typing import Protocol

from teuthis.worker.vmbus.ring import RingReader, RingWriter


class Device(Protocol):
    """What a channel calls. A device raises `RingError` to have its channel taken away."""

    def opened(self, channel: "Channel") -> None:
        """The guest has opened the channel; its rings are there."""

    def ready(self, channel: "Channel") -> bool:
        """The guest has rung the doorbell; True: there may be more, call again soon."""

    def closed(self, channel: "Channel") -> None:
        """The guest closed the channel, or it was rescinded or reset: its rings are gone."""


class Channel:
    """State of one channel, from its offer until its relid may be used again."""

    def __init__(self, relid: int, device: Device) -> None:
        self.relid = relid
        self.device = device
        self.target_vp = 0
        self.ring_gpadl: int | None = None
        """Handle of the ring's memory while the channel is open."""
        self.reader: RingReader | None = None
        self.writer: RingWriter | None = None
        self.rescinded = False
        self.finished = False
        """Whether the device was told so, since the offer or the last opening."""

    @property
    def open(self) -> bool:
        """Whether the guest has the channel open."""
        return self.ring_gpadl is not None
