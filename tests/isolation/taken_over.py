"""The worker program with its serving loop taken over by an attacker once the door is locked.

`python -I taken_over.py STORY --requests-fd N`, in place of `python -I -m teuthis.worker`: a zygote
whose workers are the real program up to and including the walls. See `test_vm.py`; never part of a
package.
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Callable

from teuthis.protocol import Status, StatusKind
from teuthis.worker import sockets, zygote
from teuthis.worker.devices.storage.backend import File
from teuthis.worker.machine import Machine


def opens_a_file(machine: Machine) -> None:
    os.open("/etc/passwd", os.O_RDONLY)


def executes_a_shell(machine: Machine) -> None:
    os.execv("/bin/sh", ["sh"])


def connects_out(machine: Machine) -> None:
    socket.create_connection(("127.0.0.1", 22))


def sends_descriptors_to_the_root(machine: Machine) -> None:
    sockets.send(machine._control._socket, bytes(32), [0])


def forges_a_link_message(machine: Machine) -> None:
    machine._link._socket.send(b"\xff" * 272)
    machine._loop._epoll.poll(60)


def starts_the_guest_twice(machine: Machine) -> None:
    for _ in range(2):
        machine._link._socket.send(b"\1\0\x10\0" + bytes(268))
    machine._loop._epoll.poll(60)


def lies_to_the_root(machine: Machine) -> None:
    machine._control._socket.send(b"\xff" * 32)
    machine._loop._epoll.poll(60)


def says_too_much_to_the_root(machine: Machine) -> None:
    machine._control._socket.send(bytes(60_000))
    machine._loop._epoll.poll(60)


def answers_what_nobody_asked(machine: Machine) -> None:
    machine._control._socket.setblocking(True)
    while True:
        machine._control._socket.send(Status(StatusKind.EXITED, 7).encode())


def floods_the_console(machine: Machine) -> None:
    os.set_blocking(machine._console._descriptor or 0, True)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        os.write(machine._console._descriptor or 0, b"\x1b[2J" * 16384)
    os._exit(0)


def writes_to_a_read_only_disk(machine: Machine) -> None:
    locked = machine._disks[1]
    assert isinstance(locked, File)
    os.pwritev(locked._descriptor, [b"x"], 0)


def syncs_a_read_only_disk(machine: Machine) -> None:
    locked = machine._disks[1]
    assert isinstance(locked, File)
    os.fdatasync(locked._descriptor)


def writes_behind_its_disk(machine: Machine) -> None:
    disk = machine._disks[0]
    assert isinstance(disk, File)
    try:
        os.pwritev(disk._descriptor, [b"x"], disk.size)
    except OSError as error:
        if error.errno == errno.EFBIG:
            opens_a_file(machine)  # that it was refused is seen by this ending
    lies_to_the_root(machine)


STORIES: dict[str, Callable[[Machine], None]] = {
    story.__name__: story
    for story in (
        opens_a_file,
        executes_a_shell,
        connects_out,
        sends_descriptors_to_the_root,
        forges_a_link_message,
        starts_the_guest_twice,
        lies_to_the_root,
        says_too_much_to_the_root,
        answers_what_nobody_asked,
        floods_the_console,
        writes_to_a_read_only_disk,
        syncs_a_read_only_disk,
        writes_behind_its_disk,
    )
}

if __name__ == "__main__":
    Machine.run = STORIES[sys.argv[1]]  # type: ignore
    sys.exit(zygote.main(sys.argv[2:]))
