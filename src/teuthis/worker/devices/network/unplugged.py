"""The adapter that a saved machine had, in the machine that goes on from it: a card pulled out.

The new machine has an adapter of its own, with another address and another cable. The driver of the
old one is told that it is gone, and lets go of it when all that it has sent is answered; so each
packet is completed and none is looked into: its frames are lost, as with any cable that is pulled.
"""

from collections import deque
from collections.abc import Iterable

from teuthis.flows import Counters
from teuthis.worker.devices.network import nvsp
from teuthis.worker.vmbus.channel import Channel
from teuthis.worker.vmbus.ring import COMPLETION, OVERHEAD, WANTS_COMPLETION, Outgoing
from teuthis.worker.vmbus.server import Server

_COMPLETION_BYTES = nvsp.MESSAGE_BYTES + OVERHEAD


class Unplugged:
    """The device behind the old adapter's channel."""

    def __init__(self, server: Server, counters: Counters, waiting: Iterable[int]) -> None:
        """`waiting`: transactions that the guest had begun."""
        self._server = server
        self._counters = counters
        self._waiting = deque(waiting)

    def opened(self, channel: Channel) -> None:
        """Never called: a channel that was taken away is not opened again."""

    def ready(self, channel: Channel) -> bool:
        """Completes what the guest still sends. Raises `RingError`."""
        if channel.reader is None or channel.writer is None:
            return False
        packets = channel.reader.read()
        if channel.reader.signal:
            self._server.interrupt(channel)
        for packet in packets:
            if packet.type != COMPLETION and packet.flags & WANTS_COMPLETION:
                self._waiting.append(packet.transaction)
        if not self._waiting:
            return False
        room = channel.writer.room() + OVERHEAD
        answers = [
            Outgoing(nvsp.rndis_complete(nvsp.SUCCESS), COMPLETION, self._waiting.popleft())
            for _ in range(min(len(self._waiting), room // _COMPLETION_BYTES))
        ]
        for answer in answers:
            self._counters.accept("nvsp.rndis-complete", len(answer.payload))
        if answers and channel.writer.write(answers):
            self._server.interrupt(channel)
        # Without room the guest signals when it has made some.
        return not self._waiting or channel.writer.wait_for(nvsp.MESSAGE_BYTES)

    def closed(self, channel: Channel) -> None:
        """The guest has let go of it."""
