"""A worker process with a hypervisor played by the test: link, doorbells, RAM, control, console."""

import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

from teuthis import protocol
from teuthis.flows import Counters, counters_size
from teuthis.jail import identity
from teuthis.protocol import Request, Status, StatusKind, WorkerConfig
from teuthis.worker.memory import GuestMemory

from .simulator import Guest

MEMORY_SIZE = 8 << 20
MESSAGE = struct.Struct("<HHIQ256s")


def memory_file(name: str, size: int) -> int:
    descriptor = os.memfd_create(name)
    os.ftruncate(descriptor, size)
    return descriptor


def readable(*descriptors: int, milliseconds: int) -> bool:
    """Whether one of them can be read, within some time."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(milliseconds))


class Process:
    """The worker, and everything around it."""

    def __init__(self) -> None:
        self.held = ExitStack()
        self.identity = self.held.enter_context(identity.lease())
        memory = memory_file("memory", MEMORY_SIZE)
        doorbells = memory_file("doorbells", 4096)
        counters = memory_file("counters", counters_size())
        self.link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.console, console = os.pipe()
        self.to_worker, self.to_hypervisor = os.eventfd(0), os.eventfd(0)
        config = WorkerConfig(
            memory=memory,
            memory_size=MEMORY_SIZE,
            link=link.fileno(),
            doorbells=doorbells,
            to_worker=self.to_worker,
            to_hypervisor=self.to_hypervisor,
            counters=counters,
            control=control.fileno(),
            console=console,
        )
        ours, owner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(ours, [msgspec.json.encode(config)], config.descriptors())
        source = str(Path(protocol.__file__).resolve().parents[1])
        code = f"""
import sys
sys.path.insert(0, {source!r})
from teuthis.protocol import Birth
from teuthis.worker.main import main
from teuthis.worker.sockets import socket
sys.exit(main(Birth({self.identity.worker}), socket(fileno={owner.fileno()})))
"""
        self.child = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            pass_fds=[owner.fileno()],
            stdin=subprocess.DEVNULL,
        )
        self.memory = GuestMemory(memory, MEMORY_SIZE)
        self.counters = Counters(counters)
        self.page = mmap.mmap(doorbells, 4096)
        for descriptor in (memory, doorbells, counters, console):
            os.close(descriptor)
        for end in (ours, owner, link, control):
            end.close()
        self.ports: set[int] = set()
        self.guest = Guest(self.memory, self)
        self.statuses: list[Status] = []
        self.started = False
        self.stopped = False

    # ---- transport -------------------------------------------------------------------------------

    def raw(self, kind: int, value: int = 0, payload: bytes = b"", version: int = 1) -> None:
        self.link.send(MESSAGE.pack(version, kind, len(payload), value, payload))

    def post(self, connection_id: int, payload: bytes) -> None:
        self.raw(1, connection_id | 1 << 32, payload)

    def signal(self, relid: int) -> None:
        if 0x2000 | relid in self.ports:
            self.page[relid] = 1
            os.eventfd_write(self.to_worker, 1)

    def settle(self) -> None:
        """Waits a moment for the worker to say something."""
        readable(self.link.fileno(), self.to_hypervisor, self.control.fileno(), milliseconds=2)

    def messages(self) -> list[bytes]:
        messages = []
        while True:
            try:
                packet = self.link.recv(512, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                break
            if not packet:
                break
            version, kind, length, value, payload = MESSAGE.unpack(packet)
            assert version == 1
            if kind == 16:
                self.started = True
            elif kind == 17:
                self.stopped = True
            elif kind == 18:
                assert value == 2 | 1 << 32
                messages.append(payload[:length])
            elif kind == 19:
                self.ports.add(value)
            else:
                assert kind == 20
                self.ports.discard(value)
        if readable(self.to_hypervisor, milliseconds=0):
            os.eventfd_read(self.to_hypervisor)
        return messages

    # ---- the root's side -------------------------------------------------------------------------

    def ask(self, request: Request, *descriptors: int) -> None:
        socket.send_fds(self.control, [protocol.encode_request(request)], descriptors)

    def take_statuses(self) -> list[Status]:
        while True:
            try:
                packet = self.control.recv(64, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                break
            if not packet:
                break
            self.statuses.append(Status.decode(packet))
        return self.statuses

    def status(self, kind: StatusKind) -> Status | None:
        for status in self.take_statuses():
            if status.kind is kind:
                self.statuses.remove(status)
                return status
        return None

    def wait_for(self, kind: StatusKind, seconds: float = 300) -> Status:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.status(kind)
            if found is not None:
                return found
            time.sleep(0.005)
        raise AssertionError(f"no {kind.name}")

    def console_text(self) -> bytes:
        text = b""
        while readable(self.console, milliseconds=0) and (more := os.read(self.console, 65536)):
            text += more
        return text

    def close(self) -> None:
        self.control.close()
        self.link.close()
        try:
            assert self.child.wait(100) == 0
        finally:
            self.child.kill()
            self.child.wait()
            self.held.close()
