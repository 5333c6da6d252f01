"""A VM that a keeper owns, asked over the keeper's socket.

The keeper greets with a `Welcome` and the VM's counter pages; after that both sides speak
`teuthis.protocol`, as with a worker: requests with the descriptors of pipes, which the keeper hands
on to the worker, and statuses. So output goes from the worker to the client and never through the
keeper.
"""

import hashlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from teuthis.errors import HostError, TeuthisError, VMClosed, VMError
from teuthis.flows import FLOWS, Count, Counters, by_flow, counters_size, total
from teuthis.protocol import MAX_REQUEST, STATUS_SIZE, Health, ProtocolError
from teuthis.root import store
from teuthis.root.caller import Caller
from teuthis.root.record import Record

VERSION: Final = 3
MAX_PAGES: Final = 16
_MAX_WELCOME: Final = MAX_REQUEST
_PATIENCE: Final = 10.0
"""Seconds that a keeper may take to greet."""

_DEATH_PATIENCE: Final = 5.0


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A keeper's first packet.

    Descriptors: the counter pages of the keeper, the root side and the VM's processes.

    Attributes:
        register: which flows the pages count, in which order.
        processes: the VM's processes by name, as process ids.
        environment: the variables that its programs get.
        user: who they run as.
        health: whether the guest's kernel answers; changes follow as statuses.
    """

    version: int
    register: str
    processes: dict[str, int]
    environment: dict[str, str]
    user: str
    health: Health


def register() -> str:
    """A digest of the register's flows in their order."""
    return hashlib.sha256("\n".join(FLOWS).encode()).hexdigest()


class Remote(Caller):
    """The client's end of a connection to a keeper.

    Attributes:
        welcome: what the keeper said of the VM.
    """

    def __init__(self, record: Record) -> None:
        """Connects to the keeper of a VM that runs.

        Raises:
            VMError: the VM does not run.
            HostError: its keeper does not answer, or is of another version.
        """
        super().__init__()
        self._record = record
        self._run = record.run
        self._name = record.name
        self._counters = Counters()
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._pages, self.welcome = _enter(control, record)
            self._requests.health = self.welcome.health
            self._talk_over(control)
        except BaseException:
            control.close()
            raise
        self._thread = threading.Thread(target=self._listen, name="teuthis-remote", daemon=True)
        self._thread.start()

    @property
    def standing(self) -> bool:
        """Whether the guest stands still, whoever asked."""
        return self._record.paused

    def flows(self) -> dict[str, Count]:
        """Counters of all the VM's processes, by flow."""
        return by_flow(total([self._counters, *self._pages]))

    def _let_go(self) -> None:
        """The connection ends, and with it the programs that were started over it."""
        self._control.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        try:
            while poll.poll():
                packet = self._control.recv(2 * STATUS_SIZE)
                if not packet:
                    break
                self._requests.take(packet)
        except (OSError, ProtocolError):
            pass  # as good as an end: the keeper is not what it should be
        with self._lock:
            self._over = True
            self._control.close()
        error = self._error()
        self._requests.fail(lambda: error)

    def _error(self) -> TeuthisError:
        if self._closing:
            return VMClosed(f"this connection to the VM {self._name!r} is closed: connect again")
        if (record := _ended(self._run)) is not None:
            return why(record)
        return VMError(f"the keeper of the VM {self._name!r} ended the connection: connect again")


def why(record: Record) -> TeuthisError:
    """The error of a VM that does not run."""
    name, ending = record.name, record.ending
    if ending is not None and ending.failure is not None and not ending.asked:
        return ending.failure.error(f"the VM {name!r} has ended: ")
    kind, state = (VMClosed, "has ended") if ending is not None else (VMError, "is dead")
    return kind(f"the VM {name!r} {state}: {record.reason}; `teuthis start {name}` starts it again")


@contextmanager
def address(record: Record) -> Iterator[str]:
    """The path of a keeper's socket, by a descriptor: it must not be longer than 107 bytes."""
    directory = os.open(record.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{record.socket.name}"
    finally:
        os.close(directory)


def _enter(control: socket.socket, record: Record) -> tuple[list[Counters], Welcome]:
    """Connects, and takes the welcome."""
    if not record.live:  # `record` may be from before the end
        raise why(_ended(record.run) or record)
    if record.ready is None:
        raise VMError(f"the VM {record.name!r} is still starting: wait for it")
    control.settimeout(_PATIENCE)
    try:
        with address(record) as path:
            control.connect(path)
        packet, descriptors, _, _ = socket.recv_fds(
            control, _MAX_WELCOME, MAX_PAGES, socket.MSG_CMSG_CLOEXEC
        )
    except OSError as error:
        raise _not_there(record, f"does not answer: {error}") from error
    if not packet:
        raise _not_there(record, "takes no more connections: try again later")
    try:
        welcome = msgspec.msgpack.decode(packet, type=Welcome)
        if (welcome.version, welcome.register) != (VERSION, register()):
            raise HostError(
                f"the VM {record.name!r} was started by another version of Teuthis: "
                f"use that one, or start it again (`teuthis stop {record.name}`)"
            )
        return [_page(descriptor) for descriptor in descriptors], welcome
    except (msgspec.DecodeError, OSError) as error:
        raise HostError(
            f"the keeper of the VM {record.name!r} does not greet as keepers do: {error}"
        ) from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _not_there(record: Record, says: str) -> TeuthisError:
    """The error of a keeper that did not greet: mostly its VM has just ended."""
    if (ended := _ended(record.run)) is not None:
        return why(ended)
    return HostError(f"the keeper of the VM {record.name!r} {says}")


def _ended(run: str) -> Record | None:
    """What is known of a VM whose keeper has let go of us, if it is because the VM has ended."""
    with suppress(TeuthisError):
        record = store.find_run(run)
        if record.ending is None and record.keeper is not None:
            record.keeper.wait(_DEATH_PATIENCE)  # a killed one closes its socket before it is gone
            record = store.find_run(run)
        if not record.live:
            return record
    return None


def _page(descriptor: int) -> Counters:
    if os.fstat(descriptor).st_size != counters_size():
        raise OSError("a counter page of another size")
    return Counters(descriptor, writable=False)
