"""Descriptors beside bytes, on sockets."""

import os
import socket

from teuthis.worker import sockets


def test_packets_carry_descriptors() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with near, far:
        sockets.send(near, b"one", [read, write])
        data, (read_too, write_too) = sockets.receive(far, 64, 2)
        assert data == b"one"
        os.write(write_too, b"x")
        assert os.read(read_too, 1) == b"x"
        sockets.send(near, b"two", [])
        near.send(b"three")
        assert sockets.receive(far, 64, 2) == (b"two", [])
        assert sockets.receive(far, 64, 2) == (b"three", [])
    for descriptor in (read, write, read_too, write_too):
        os.close(descriptor)


def test_more_descriptors_than_wanted_do_not_come_in() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        socket.send_fds(near, [b"x"], [0] * 9)
        data, found = sockets.receive(far, 64, 3)
        assert data == b"x"
        assert len(found) <= 4  # what an alignment to eight bytes has room for
        for descriptor in found:
            os.close(descriptor)
