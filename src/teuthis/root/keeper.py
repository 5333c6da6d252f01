"""The keeper of a VM that outlives the command that started it: one small process per VM.

It owns the VM as any program does that uses this library, and lets its user in by a socket that
only processes of the same user can reach. Of the guest's data it sees what such a program sees of a
VM that it does not use: fixed-size statuses, and the bytes of the log files, unread. If the keeper
dies, the VM's processes die with it.

Started by `start` as `python -m teuthis.root.keeper --run RUN --report-fd N`.
"""

import errno
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, Self

import msgspec

from teuthis.errors import GuestPowerOff, HostError, TeuthisError, VMClosed
from teuthis.flows import Counters, counters_size
from teuthis.protocol import (
    DESCRIPTORS,
    MAX_REQUEST,
    ROOT,
    Exec,
    Facts,
    Health,
    KeeperRequest,
    Pause,
    ProtocolError,
    ReadFile,
    Resize,
    Resume,
    Save,
    Shutdown,
    Signal,
    Snapshot,
    Status,
    StatusKind,
    Stop,
    WriteFile,
    decode_keeper_request,
)
from teuthis.root import logs, remote, store
from teuthis.root.descriptors import Descriptors
from teuthis.root.failure import Failure
from teuthis.root.process import STDOUT, Process
from teuthis.root.promise import Promise
from teuthis.root.record import Ending, Record
from teuthis.root.remote import Welcome
from teuthis.root.vm import VM

_SYNC_PATIENCE: Final = 60.0
MAX_CONNECTIONS: Final = 64
_MAX_DESCRIPTORS: Final = max(DESCRIPTORS.values())
_CHUNK: Final = 64 * 1024
_PEER: Final = struct.Struct("iII")
"""`struct ucred` (unix(7)): process, user, group."""
_TERMINATE_PATIENCE: Final = 10.0
"""Seconds that the guest has to end in order when the host ends (SIGTERM)."""


class Report(msgspec.Struct, frozen=True):
    """What the keeper tells its starter, once: that the VM runs, or why not."""

    failure: Failure | None = None


def main(arguments: list[str]) -> int:
    """Keeps one VM until it ends."""
    _, run, _, descriptor = arguments
    starter = Starter(socket.socket(fileno=int(descriptor)))
    _leave()
    starter.watch()
    try:
        store.kept(run)
        record = store.find_run(run)
        with Descriptors() as held:
            kernel_log = logs.LogFile(record.directory / logs.KERNEL)
            held.callback(kernel_log.close)
            vm = held.enter_context(record.plan.start(record.directory, kernel_log))
            page = held.memory_file("counters-keeper", counters_size())
            keeper = held.enter_context(Keeper(record, vm, page))
            store.ready(run)
            starter.tell(Report())
            store.ended(run, keeper.serve())
    except TeuthisError as error:
        starter.tell(Report(Failure.of(error)))
        return 1
    except Exception as error:  # a defect of ours: said where somebody may see it
        defect = HostError(f"internal error in the keeper: {error!r}")
        store.ended(run, Ending.of(defect))
        starter.tell(Report(Failure.of(defect)))
        raise
    return 0


def _leave() -> None:
    """Out of the starter's session and children: what happens to it does not happen to us."""
    os.umask(0o077)
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class Starter:
    """The command that started us: it waits for one report, and its death before that is ours."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._told = False

    def watch(self) -> None:
        """Ends this process, and with it the VM, when the starter dies before it was told."""
        threading.Thread(target=self._watch, name="teuthis-starter", daemon=True).start()

    def _watch(self) -> None:
        with suppress(OSError):
            self._link.recv(1)
        if not self._told:
            os._exit(1)

    def tell(self, report: Report) -> None:
        """Gives the report; later ones have nobody to read them."""
        if not self._told:
            self._told = True
            with suppress(OSError):
                self._link.send(msgspec.msgpack.encode(report))
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)


class Keeper:
    """The VM's socket, its program, and how it ends."""

    def __init__(self, record: Record, vm: VM, page: int) -> None:
        """Starts the VM's program, if it has one, and listens.

        Args:
            record: the VM's.
            vm: the VM.
            page: descriptor of a counter page for the keeper's own flow.

        Raises:
            CommandNotFound, CommandNotExecutable: the guest cannot run the program.
            HostError: the socket or the log cannot be made.
        """
        self.machine = vm.machine
        self._record = record
        self._vm = vm
        self._saving = threading.Lock()
        self.environment = vm.environment
        self.user = vm.user
        self._asked = False
        self._exit_code: int | None = None
        self.counters = Counters(page)
        self.counter_pages = (page, *vm.machine.counter_pages)
        self._over = os.eventfd(0, os.EFD_CLOEXEC)
        self._connections: set[Connection] = set()
        try:
            if record.plan.command:
                self._start(record)
            self._listener = _listen(record)
        except OSError as error:
            raise HostError(f"could not make the keeper's socket or log: {error}") from error
        self.machine.watch_health(self._tell_health)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
        for connection in list(self._connections):
            connection.close()

    def serve(self) -> Ending:
        """Lets clients in until the VM has ended; returns how it did."""
        signal.signal(signal.SIGTERM, self._on_terminate)
        threading.Thread(target=self._await_end, daemon=True).start()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._over, select.POLLIN)
        while self._over not in dict(poll.poll()):
            client, _ = self._listener.accept()
            if len(self._connections) >= MAX_CONNECTIONS or not _is_same_user(client):
                client.close()
                continue
            connection = Connection(client, self)
            self._connections.add(connection)
            threading.Thread(target=connection.serve, daemon=True).start()
        return self._ending()

    def _tell_health(self) -> None:
        for connection in list(self._connections):
            connection.tell_health()

    def stop(self, patience: float) -> None:
        """Ends the VM on request; its guest has `patience` seconds to do so in order."""
        if patience:
            with suppress(TeuthisError):
                self.machine.submit(Resume)  # one that stands still could not end in order
            self.shut_down()
            with suppress(TeuthisError):
                self.machine.raise_end(patience)
        self._asked = True
        self.machine.close()

    def snapshot(self, path: Path) -> None:
        """Saves the VM, one client after the other. Raises as `VM.snapshot`."""
        with self._saving:
            self._vm.snapshot(path)

    def stands(self, still: bool) -> None:
        """The guest stands still, or goes on, as somebody asked."""
        self._record.mark_paused(still)

    def leave(self, connection: "Connection") -> None:
        """A connection is over."""
        self._connections.discard(connection)

    def asked_to_end(self) -> None:
        """If the VM ends in order now, somebody wanted it."""
        self._asked = True

    def shut_down(self) -> None:
        """Asks the guest to end in order."""
        self.asked_to_end()
        with suppress(TeuthisError):
            self.machine.submit(Shutdown)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        threading.Thread(target=self.stop, args=(_TERMINATE_PATIENCE,), daemon=True).start()

    def _await_end(self) -> None:
        with suppress(TeuthisError):
            self.machine.raise_end(None)
        os.eventfd_write(self._over, 1)

    def _ending(self) -> Ending:
        try:
            self.machine.raise_end(0)
        except TeuthisError as error:
            if self._asked and isinstance(error, (VMClosed, GuestPowerOff)):
                return Ending.on_request(self._exit_code)
            if self._exit_code is not None and isinstance(error, VMClosed):
                return Ending(time.time(), asked=False, exit_code=self._exit_code)
            return Ending.of(error, self._exit_code)
        raise AssertionError("the VM has ended")

    def _start(self, record: Record) -> None:
        plan = record.plan
        process = self._vm.popen(plan.command, stderr=STDOUT, cwd=plan.workdir)
        log = logs.LogFile(record.directory / logs.OUTPUT)
        threading.Thread(target=self._await_program, args=(process, log), daemon=True).start()

    def _await_program(self, process: Process, log: logs.LogFile) -> None:
        """Copies the program's output to the log; at its end the VM has done its work."""
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), _CHUNK):
            with suppress(OSError):  # a full disk costs the log, not the program
                log.write(data)
        with suppress(TeuthisError):
            code = process.wait()
            self._exit_code = 128 - code if code < 0 else code
            # What is written to be kept must not stay in the guest.
            self._vm.run(["sync"], timeout=_SYNC_PATIENCE, user=ROOT)
        self.machine.close()


Numbered = Exec | ReadFile | WriteFile | Shutdown | Facts | Pause | Resume | Save
"""Requests that get an answer of their own."""


class Connection:
    """One client. Its requests get numbers of the VM's; programs it leaves behind are killed."""

    def __init__(self, client: socket.socket, keeper: Keeper) -> None:
        self._client = client
        self._keeper = keeper
        self._machine = keeper.machine
        self._numbers: dict[int, int] = {}
        """The client's numbers of requests under way, and the VM's for the same."""
        self._health: Health | None = None
        """What the client knows; None before it is greeted."""
        self._health_lock = threading.Lock()

    def close(self) -> None:
        """Ends the connection."""
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def tell_health(self) -> None:
        """Tells the client how the guest is, if it has been greeted and does not know it."""
        with self._health_lock:
            health = self._machine.health
            if self._health not in (None, health):
                self._health = health
                self._send(Status(StatusKind.HEALTH, value=health))

    def _greet(self) -> None:
        with self._health_lock:
            self._health = self._machine.health
            welcome = Welcome(
                remote.VERSION,
                remote.register(),
                self._machine.processes,
                dict(self._keeper.environment),
                self._keeper.user,
                self._health,
            )
            packet = msgspec.msgpack.encode(welcome)
            socket.send_fds(self._client, [packet], self._keeper.counter_pages)

    def serve(self) -> None:
        """Greets the client and does what it asks, until it goes or breaks the protocol."""
        try:
            self._greet()
            while self._take():
                pass
        except (OSError, ProtocolError, TeuthisError):
            pass
        finally:
            self._keeper.leave(self)
            for number in list(self._numbers.values()):
                self._machine.tell(Signal(number, signal.SIGKILL))
            self._client.close()

    def _take(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(
            self._client, MAX_REQUEST + 1, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        counters = self._keeper.counters
        try:
            if packet:
                self._handle(decode_keeper_request(packet, len(descriptors)), descriptors)
                counters.accept("keeper.request", len(packet))
            return bool(packet)
        except ProtocolError:
            counters.reject("keeper.request", "malformed")
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _handle(self, request: KeeperRequest, descriptors: list[int]) -> None:
        match request:
            case Stop():
                self._keeper.stop(0)
            case Snapshot():
                self._snapshot(request, descriptors[0])
            case Signal() | Resize():
                if (number := self._numbers.get(request.id)) is not None:
                    self._machine.tell(msgspec.structs.replace(request, id=number))
            case _:
                if isinstance(request, Shutdown):
                    self._keeper.asked_to_end()
                self._submit(request, descriptors)

    def _snapshot(self, request: Snapshot, sink: int) -> None:
        try:
            self._keeper.snapshot(Path(request.path))
        except TeuthisError as error:
            with suppress(OSError):
                os.write(sink, msgspec.msgpack.encode(Failure.of(error)))
            self._send(Status(StatusKind.FAILED, request.id, errno.EIO))
        else:
            self._send(Status(StatusKind.DONE, request.id))

    def _submit(self, request: Numbered, descriptors: list[int]) -> None:
        own = request.id
        if own in self._numbers:
            raise ProtocolError("a number of a request that is under way")
        answer = self._machine.submit(
            lambda number: msgspec.structs.replace(request, id=number), descriptors
        )
        self._numbers[own] = answer.id

        def started(promise: Promise[int]) -> None:
            if promise.exception() is None and (pid := promise.result()):
                self._send(Status(StatusKind.STARTED, own, pid))

        def finished(promise: Promise[Status]) -> None:
            self._numbers.pop(own, None)
            if promise.exception() is None:
                if promise.result().kind is StatusKind.DONE and isinstance(request, Pause | Resume):
                    self._keeper.stands(isinstance(request, Pause))
                self._send(promise.result()._replace(id=own))

        answer.started.add_done_callback(started)
        answer.finished.add_done_callback(finished)

    def _send(self, status: Status) -> None:
        """Called by the VM's thread: a client that does not read must not hold it up."""
        try:
            self._client.send(status.encode(), socket.MSG_DONTWAIT)
        except OSError:
            self.close()


def _listen(record: Record) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with remote.address(record) as path:
            listener.bind(path)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _is_same_user(client: socket.socket) -> bool:
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(credentials)
    return bool(uid == os.geteuid())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
