"""VMs with names, which outlive the program that starts them: started, found, stopped, removed."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from teuthis import data
from teuthis.errors import ConfigurationError, HostError, TeuthisError
from teuthis.protocol import Resume, Shutdown, Snapshot, StatusKind, Stop
from teuthis.root import settings, snapshot, store
from teuthis.root.disks import Disk
from teuthis.root.failure import Failure
from teuthis.root.guest import Guest
from teuthis.root.keeper import Report
from teuthis.root.plan import ORIGIN, Plan, PlannedDisk, host_path
from teuthis.root.record import Ending, Record
from teuthis.root.remote import Remote

STOP_TIMEOUT: Final = 30.0
"""Seconds that a guest has to end in order, unless its user says otherwise."""
_STOP_PATIENCE: Final = 10.0
"""Seconds that a keeper has to end a VM before it is killed itself."""
_MAX_REPORT: Final = 1 << 20
_INHERITED: Final = (
    *("HOME", "LANG", "PATH", "TMPDIR", "TEUTHIS_DEBUG"),
    *("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"),
)
_INHERITED_PATHS: Final = ("TEUTHIS_CACHE", "TEUTHIS_PROGRAMS")


class NamedVM(Guest):
    """A connection to a VM with a name. The VM goes on when the connection ends.

    Programs that are started over a connection end with it.

    Attributes:
        name: the VM's name.
        processes: the VM's processes by name, as process ids.
    """

    def __init__(self, record: Record) -> None:
        remote = Remote(record)
        super().__init__(remote, remote.welcome.environment, remote.welcome.user)
        self.name = record.name
        self.processes = remote.welcome.processes
        self._record = record
        self._finalizer = weakref.finalize(self, remote.close)

    def __repr__(self) -> str:
        return f"<NamedVM {self.name!r} {'closed' if self.closed else 'running'}>"

    def close(self) -> None:
        """Ends the connection. The VM goes on."""
        self._finalizer()

    def stop(self, timeout: float = STOP_TIMEOUT, *, now: bool = False) -> None:
        """Ends the VM; none of its processes is left when this returns. It can be started again.

        Args:
            timeout: seconds that the guest has to end in order.
            now: do not ask the guest.
        """
        if not now:
            with suppress(TeuthisError):
                self._machine.submit(Resume)  # one that stands still could not end in order
                self._machine.submit(Shutdown)
            self._await_end(timeout)
        self._machine.tell(Stop())
        self._await_end(_STOP_PATIENCE)
        kill(self._record)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Saves the VM to a new directory, as `VM.snapshot`; `start(restore=…)` goes on from it.

        Raises:
            SnapshotError: the directory exists, or the VM cannot be saved now.
            VMError: the VM is no more.
        """
        source, sink = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(source, "rb") as said:
            directory = host_path(path) or ""
            try:
                answer = self._machine.submit(lambda number: Snapshot(number, directory), [sink])
            finally:
                os.close(sink)
            if answer.finished.result().kind is StatusKind.DONE:
                return
            error = said.read(_MAX_REPORT)
        raise msgspec.msgpack.decode(error, type=Failure).error()

    def fork(self, *names: str) -> Sequence["NamedVM"]:
        """Running copies of the VM under new names, as `VM.fork`. They outlive this program, too.

        A copy that has ended and is started again goes on from the same moment once more.

        Raises:
            ConfigurationError: a name is taken, or cannot be one.
            SnapshotError: the VM cannot be copied now.
            HostError: this host lacks something.
        """
        return _fork(self, self._record, names)

    def _await_end(self, timeout: float) -> None:
        with suppress(TeuthisError):
            self._machine.raise_end(timeout)


def start(
    name: str,
    command: Sequence[str] = (),
    *,
    memory: int | str = "256M",
    image: str = "tiny",
    disks: Sequence[Disk] = (),
    network: str | None = None,
    publish: Sequence[str] = (),
    host_ports: Sequence[int] = (),
    mac: str | None = None,
    mtu: int | None = None,
    net_rate: int | str | None = None,
    kernel: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    user: str | None = None,
    on_hang: Literal["report", "kill"] = "report",
    agent: bool = True,
    allow_missing_walls: Collection[str] = (),
    processor: str = "auto",
    cpus: int = 1,
    restore: str | os.PathLike[str] | None = None,
) -> NamedVM:
    """Starts a VM that outlives this program, and connects to it.

    Args:
        name: up to 63 lower-case letters, digits and hyphens; unique among the user's VMs.
        command: a program that the VM is for: when it ends, so does the VM. What it writes is kept
            in a log. Without one the VM runs until it is stopped.
        memory: see `VM`, as for all that is not said here.
        image: see `VM`; what the guest writes above it is kept until the VM is removed.
        disks: see `VM`; the same holds for those with `copy_on_write`.
        network: see `VM`.
        publish: see `VM`.
        host_ports: see `VM`.
        mac: see `VM`.
        mtu: see `VM`.
        net_rate: see `VM`.
        kernel: see `VM`.
        env: see `VM`.
        cwd: where the program starts.
        user: see `VM`.
        on_hang: see `VM`.
        processor: see `VM`.
        cpus: see `VM`.
        agent: see `VM`.
        allow_missing_walls: see `VM`.
        restore: the directory of a snapshot that the VM goes on from. Its memory, image, disks,
            network and processor are those of the VM that was saved; what the guest writes to its
            disks goes with the VM's end. Started again it goes on from the snapshot once more.

    Raises:
        ConfigurationError: the name is taken, or an argument cannot be.
        SnapshotError: the snapshot is damaged, cut off, newer, or none at all.
        KernelError, HostError, BootTimeout, GuestPanic, …: see `VM`.
        CommandNotFound, CommandNotExecutable: the guest cannot run the command.
        VMClosed: the command has ended already, before this program could connect.
    """
    plan = Plan(
        memory=memory,
        image=image,
        disks=tuple(PlannedDisk.of(disk) for disk in disks),
        network=network,
        publish=tuple(publish),
        host_ports=tuple(host_ports),
        mac=mac,
        mtu=mtu,
        net_rate=net_rate,
        kernel=host_path(kernel),
        env=settings.environment(env),
        agent=agent,
        allow_missing_walls=tuple(allow_missing_walls),
        command=tuple(settings.arguments(command)) if command else (),
        workdir=settings.guest_path(cwd),
        user=None if user is None else settings.user(user),
        on_hang=on_hang,
        processor=processor,
        cpus=cpus,
    )
    if restore is not None:
        plan = _from_snapshot(plan, Path(restore).absolute())
    return _start(store.add(name, plan))


def _start(record: Record) -> NamedVM:
    try:
        _keep(record)
    except BaseException:
        with suppress(TeuthisError):  # mostly there is no keeper any more
            kill(record)
        store.forget(record)
        raise
    return NamedVM(store.find_run(record.run))


def _from_snapshot(plan: Plan, directory: Path) -> Plan:
    """The plan of a VM that goes on from a snapshot, of which the user said `plan` besides."""
    beside = replace(plan, env={}, command=(), workdir="/", user=None, allow_missing_walls=())
    if beside != Plan():
        raise ConfigurationError(
            "a VM that goes on from a snapshot has memory, image, disks, network, processor and "
            "agent from there: say only its program, user, variables and missing walls"
        )
    found = snapshot.describe(directory)
    memory = f"{found.memory_size >> 20}M"
    return replace(plan, restore=str(directory), memory=memory, agent=found.agent)


def _fork(vm: NamedVM, record: Record, names: Sequence[str]) -> Sequence[NamedVM]:
    if not names or len(set(names)) != len(names):
        raise ConfigurationError("say a name of its own for each copy, for one at least")
    taken = {each.name for each in store.records()}
    for name in names:
        if store.check_name(name) in taken:
            raise ConfigurationError(f"there is a VM {name!r} already: choose another name")
    plan = replace(record.plan, forked=True, command=(), workdir="/", publish=())
    copies: dict[str, NamedVM] = {}
    with tempfile.TemporaryDirectory(dir=record.directory, prefix="fork-") as place:
        saved = Path(place) / ORIGIN
        vm.snapshot(saved)
        try:
            for name in names:
                copies[name] = _start(_copy(store.add(name, plan), saved))
        except BaseException:
            for name in copies:
                with suppress(TeuthisError):
                    remove(name, force=True)
            raise
    return [*copies.values()]


def _copy(record: Record, saved: Path) -> Record:
    """Gives a VM what it goes on from: the files of all copies are one, gone with the last copy."""
    try:
        shutil.copytree(saved, record.directory / ORIGIN, copy_function=os.link)
    except (OSError, shutil.Error) as error:
        store.forget(record)
        raise HostError(f"could not give the VM {record.name!r} its files: {error}") from error
    return record


def start_again(name: str) -> NamedVM:
    """Starts a VM again that was stopped, has ended, or was found dead.

    Raises:
        ConfigurationError: there is no such VM, or it runs.
        TeuthisError: see `start`.
    """
    record = store.again(name)
    try:
        _keep(record)
    except TeuthisError as error:
        store.ended(record.run, Ending.of(error))
        raise
    return NamedVM(store.find_run(record.run))


def connect(name: str) -> NamedVM:
    """Connects to a VM that runs.

    Raises:
        ConfigurationError: there is no such VM.
        VMError: it does not run; the error is the one that it ended with.
        HostError: its keeper does not answer.
    """
    return NamedVM(store.find(name))


def list() -> Sequence[Record]:
    """All VMs with names, those that have ended too."""
    return store.records()


def stop(name: str, timeout: float = STOP_TIMEOUT, *, now: bool = False) -> None:
    """Ends a VM; does nothing when it has ended.

    Raises:
        ConfigurationError: there is no such VM.
    """
    record = store.find(name)
    if not record.live:
        return
    try:
        vm = NamedVM(record)
    except TeuthisError:  # it still starts, or its keeper is stuck
        kill(record)
        return
    with vm:
        vm.stop(timeout, now=now)


def remove(name: str, *, force: bool = False) -> None:
    """Forgets a VM that has ended; its files go with it.

    Args:
        name: which.
        force: also one that runs: it is ended at once.

    Raises:
        ConfigurationError: there is no such VM, or it runs.
    """
    if force:
        stop(name, now=True)
    store.remove(name)


def kill(record: Record) -> None:
    """Ends a VM, whose keeper may be stuck, by killing that; does nothing when it has ended.

    Raises:
        HostError: it has no keeper yet.
    """
    record = store.find_run(record.run)
    if not record.live:
        return
    if record.keeper is None:
        raise HostError(f"the VM {record.name!r} is just being started: try again")
    record.keeper.kill()
    store.ended(record.run, Ending.on_request())


def _keep(record: Record) -> None:
    """Starts the keeper and waits for its word."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        options = ["--run", record.run, "--report-fd", str(theirs.fileno())]
        try:
            # It returns at once: the keeper goes on as a child of its own.
            subprocess.run(
                [sys.executable, "-I", "-m", "teuthis.root.keeper", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get("TEUTHIS_DEBUG") else subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                cwd="/",
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostError(f"could not start a keeper for the VM: {error}") from error
        theirs.close()
        packet = ours.recv(_MAX_REPORT)
    if not packet:
        raise HostError(f"the keeper of the VM {record.name!r} died while it started")
    failure = msgspec.msgpack.decode(packet, type=Report).failure
    if failure is not None:
        raise failure.error()


def _environment() -> dict[str, str]:
    given = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    paths = {name: os.environ[name] for name in _INHERITED_PATHS if name in os.environ}
    given |= {name: str(host_path(path)) for name, path in paths.items()}
    return given | {"TEUTHIS_DATA": str(data.directory())}
