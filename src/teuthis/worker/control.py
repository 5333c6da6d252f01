"""The control socket: requests of the root side in, statuses out; also the worker's lifeline."""

import os
from collections.abc import Iterator

from teuthis import protocol
from teuthis.flows import Counters
from teuthis.protocol import ProtocolError, Request, Status
from teuthis.worker import sockets
from teuthis.worker.outbox import Outbox
from teuthis.worker.sockets import socket

_MAX_DESCRIPTORS = 3


class LifelineCut(Exception):
    """The root side has gone: the worker ends at once."""


class Control:
    """The socket, and the statuses it could not take yet (bounded by the sessions there are)."""

    def __init__(self, control: socket, counters: Counters) -> None:
        control.setblocking(False)
        self._socket = control
        self._counters = counters
        self._outbox = Outbox(control)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._socket.fileno()

    @property
    def blocked(self) -> bool:
        """Whether statuses wait for the socket to become writable."""
        return len(self._outbox) > 0

    def receive(self) -> Iterator[tuple[Request, list[int]]]:
        """The requests that are there, with their descriptors. Raises `LifelineCut`."""
        while True:
            try:
                packet, descriptors = sockets.receive(
                    self._socket, protocol.MAX_REQUEST + 1, _MAX_DESCRIPTORS
                )
            except BlockingIOError:
                return
            except OSError as error:
                raise LifelineCut from error
            if not packet:
                raise LifelineCut
            try:
                request = protocol.decode_request(packet, len(descriptors))
            except ProtocolError as error:
                for descriptor in descriptors:
                    os.close(descriptor)
                self._counters.reject("control.request", "malformed")
                raise LifelineCut from error
            self._counters.accept("control.request", len(packet))
            yield request, descriptors

    def send(self, status: Status) -> None:
        """Sends or queues a status."""
        self._outbox.add(status.encode())
        self.flush()

    def flush(self) -> None:
        """Sends what the socket takes. Raises `LifelineCut`."""
        try:
            self._outbox.flush()
        except OSError as error:
            raise LifelineCut from error

    def finish(self, status: Status) -> None:
        """Sends the last status, however slow its reader, who kills us in the end, may be.

        Raises `LifelineCut`.
        """
        self._socket.setblocking(True)
        self.send(status)
