"""Packets that a socket has not taken yet, in order."""

from collections import deque

from teuthis.worker.sockets import socket


class Outbox:
    """The unsent packets of one non-blocking packet socket."""

    def __init__(self, target: socket) -> None:
        self._socket = target
        self._unsent: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._unsent)

    def add(self, packet: bytes) -> None:
        """Puts a packet behind those that wait."""
        self._unsent.append(packet)

    def flush(self) -> None:
        """Sends what the socket takes. Raises `OSError`, with nothing left, when it is no more."""
        while self._unsent:
            try:
                self._socket.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                raise
            self._unsent.popleft()
