"""One offered channel and the device behind it."""

from collections.abc import Callable
from typing import Any, Protocol

from teuthis.worker.vmbus.ring import RingReader, RingWriter


class Device(Protocol):
    """What a channel calls. A device raises `RingError` to have its channel taken away."""

    def opened(self, channel: "Channel") -> None:
        """The guest has opened the channel; its rings are there."""

    def ready(self, channel: "Channel") -> bool:
        """The guest has rung the doorbell; True: there may be more, call again soon."""

    def closed(self, channel: "Channel") -> None:
        """The guest closed the channel, or it was rescinded or reset: its rings are gone."""


class Saveable:
    """A device that can be part of a saved machine.

    A base class: to find out whether an object fits a protocol takes a tenth of a restore.
    """

    def save(self) -> dict[str, Any]:
        """Its state as plain values: numbers, texts, bytes, lists and dicts of them."""
        raise NotImplementedError

    def restore(self, state: dict[str, Any], channel: "Channel | None") -> None:
        """Goes on from such a state, with the channel it had.

        The state may come from a worker that was taken over: `ValueError`, `KeyError` or
        `TypeError` refuse it.
        """
        raise NotImplementedError


class Channel:
    """State of one channel, from its offer until its relid may be used again."""

    def __init__(self, relid: int, device: Device, instance: bytes | None) -> None:
        """`instance`: what was offered; None: a stream of a saved machine."""
        self.relid = relid
        self.device = device
        self.instance = instance
        self.target_vp = 0
        self.ring_gpadl: int | None = None
        """Handle of the ring's memory while the channel is open."""
        self.downstream_page = 0
        """Where in it the guest's reading half begins."""
        self.reader: RingReader | None = None
        self.writer: RingWriter | None = None
        self.rescinded = False
        self.finished = False
        """Whether the device was told so, since the offer or the last opening."""
        self.on_released: Callable[[], None] = lambda: None
        """Called when a guest from which it was taken away has let go of it."""

    @property
    def fresh(self) -> bool:
        """Whether the guest has made nothing of the offer yet."""
        return not (self.open or self.finished or self.rescinded)

    @property
    def open(self) -> bool:
        """Whether the guest has the channel open."""
        return self.ring_gpadl is not None
