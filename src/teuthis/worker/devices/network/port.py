"""The other side of the adapter: a packet socket to the VM's switch process, one frame a packet.

The root side made the socket and gave one end to each. The switch judges every frame we send;
from it come frames of other machines, which concern the guest alone.
"""

import os
from collections.abc import Callable

from teuthis.worker.loop import READ, WRITE, Loop


class Port:
    """The socket, watched for what the adapter can use now."""

    def __init__(self, loop: Loop, descriptor: int | None, max_frame: int) -> None:
        """`max_frame`: bytes of the largest frame; longer ones are dropped.

        Without a descriptor the cable is cut: frames go nowhere.
        """
        self.on_ready: Callable[[], None] = lambda: None
        self.closed = descriptor is None
        """Whether nothing comes or goes: the switch has ended, or there never was one."""
        self._loop = loop
        self._descriptor = -1 if descriptor is None else descriptor
        self._max_frame = max_frame
        if descriptor is not None:
            os.set_blocking(descriptor, False)

    def cut(self) -> "Port":
        """Another one, whose cable is cut."""
        return Port(self._loop, None, self._max_frame)

    def want(self, *, read: bool, write: bool) -> None:
        """Has `on_ready` called when a frame is there, or when one can be sent again."""
        events = (READ if read else 0) | (WRITE if write else 0)
        if self.closed or not events:
            self._loop.unwatch(self._descriptor)
        else:
            self._loop.watch(self._descriptor, events, self._ready)

    def soon(self) -> None:
        """Has `on_ready` called in the next turn of the loop."""
        self._loop.soon(self._ready)

    def _ready(self) -> None:
        self.on_ready()

    def send(self, frame: memoryview) -> bool:
        """Sends a frame; False: not now. Without a switch it goes nowhere."""
        if self.closed:
            return True
        try:
            os.write(self._descriptor, frame)
        except BlockingIOError:
            return False
        except OSError:
            self._close()
        return True

    def receive(self) -> bytes | None:
        """A frame, or None when there is none now."""
        if self.closed:
            return None
        try:
            frame = os.read(self._descriptor, self._max_frame + 1)
        except BlockingIOError:
            return None
        except OSError:
            frame = b""
        if not frame:
            self._close()
            return None
        return frame

    def _close(self) -> None:
        self.closed = True
        self._loop.unwatch(self._descriptor)
        os.close(self._descriptor)
