"""The keeper of a VM that outlives its starter: out of reach for whoever breaks out of a VM."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import teuthis
from teuthis.root import store

from ..guests.named import home
from .prison import NOBODY, SIGSYS, Prison, call

UNIX, PACKETS = 1, 5


@pytest.fixture(scope="module")
def door() -> Iterator[Path]:
    """A keeper's socket. Every mode on the way to it lets everybody pass: the walls are to hold."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path, home(Path(path) / "data") as data:
        teuthis.start("kept", memory="128M").close()
        record = store.find("kept")
        address = record.socket
        passages = [Path(path), data, data / "vms", record.directory]
        for each in passages:
            each.chmod(0o711)
        address.chmod(0o666)
        yield address
        for each in passages:
            each.chmod(0o700)


def connect(path: Path) -> str:
    """The attack: a connection to the socket at `path`."""
    address = UNIX.to_bytes(2, "little") + os.fsencode(path) + b"\0"
    return " ; ".join(
        [
            call("socket", UNIX, PACKETS, 0),
            call("connect", "r0", f"x:{address.hex()}", len(address)),
        ]
    )


def test_no_process_of_a_vm_reaches_it(prison: Prison, door: Path) -> None:
    assert prison.attempt([connect(door)]) == [f"killed {SIGSYS}"]
    (answer,) = prison.attempt([connect(door)], without=["system-calls"])
    assert answer.startswith("errno ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
def test_who_has_no_walls_finds_the_door_open(door: Path) -> None:
    """Or the test above would prove nothing. The keeper closes it before a word is said."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.settimeout(30)
            client.connect(str(door))
            os._exit(0 if client.recv(100) == b"" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
