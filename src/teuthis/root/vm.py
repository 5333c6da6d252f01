"""The virtual machine of the public API."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from teuthis.errors import (
    BootTimeout,
    CommandNotExecutable,
    CommandNotFound,
    ConfigurationError,
    SnapshotError,
    TeuthisError,
)
from teuthis.images import store
from teuthis.images.store import Image
from teuthis.protocol import ROOT, Health
from teuthis.root import boot, first_pages, settings, snapshot, templates
from teuthis.root.console import Sink
from teuthis.root.guest import DEFAULT_ENVIRONMENT, Guest
from teuthis.root.machine import Machine
from teuthis.root.processor import DEVICE, choose, kvm
from teuthis.root.reserved import Reserved
from teuthis.root.result import Result
from teuthis.root.saved import Saved, seal
from teuthis.root.streams import MAX_OUTPUT
from teuthis.warm import interpreters

if TYPE_CHECKING:
    from teuthis.root.disks import Disk
    from teuthis.root.launch import Start
    from teuthis.root.network import Wanted

DEFAULT_MEMORY: Final = "256M"
BOOT_TIMEOUT: Final = 120.0
"""Seconds from start to the agent's first word; a boot takes a few on an idle host."""
INIT_BOOT_TIMEOUT: Final = 600.0
"""The same for a distribution's own init, until its kernel answers heartbeats."""
_SETTLE_SECONDS: Final = 30.0
"""Seconds that a guest may take to answer heartbeats before it is made a template."""


class VM(Guest):
    """A virtual machine that has booted and is ready to run programs.

    Use it in a `with` block. All methods may be called from any thread, and several programs may
    run at once; from asyncio call them with `asyncio.to_thread`. When the last reference goes, or
    the process ends in whatever way, the VM ends too.

    Attributes:
        machine: the processes behind it, for the root side.
    """

    def __init__(
        self,
        memory: int | str = DEFAULT_MEMORY,
        *,
        image: str = store.TINY,
        keep: str | os.PathLike[str] | None = None,
        disks: Sequence[Disk] = (),
        network: str | None = None,
        publish: Sequence[str] = (),
        host_ports: Sequence[int] = (),
        mac: str | None = None,
        mtu: int | None = None,
        net_rate: int | str | None = None,
        kernel: str | os.PathLike[str] | None = None,
        console: Sink | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        boot_timeout: float | None = None,
        agent: bool = True,
        on_hang: Literal["report", "kill"] = "report",
        allow_missing_walls: Collection[str] = (),
        processor: str = "auto",
        record: str | os.PathLike[str] | None = None,
        cold: bool = False,
        warm: str | None = None,
        cpus: int = 1,
    ) -> None:
        """Starts a VM and waits until its agent is ready, or without one its kernel.

        On our own processor it starts from a template, which is made the first time: a VM of the
        same image and memory that booted once. It boots itself with `cold`, `console`, `keep`,
        `kernel` or `record`, without our agent, and on the host's processor.

        Args:
            memory: guest memory: bytes, or a text such as "256M" or "2G".
            image: name of the image to boot: what its disk holds is the guest's root file system.
                The image stays as it is; what the guest writes goes into a layer above it that is
                thrown away when the VM ends.
            keep: a file that keeps this layer, made if it is missing; given again with the same
                image, the guest finds what it has written and flushed (`sync`).
            disks: further disks, in the guest's order: /dev/sda, or /dev/sdb after an image's own.
            network: None for none at all; "user" for the host's network, as far as the user
                reaches it; "switch:NAME" for one between the VMs that name it.
            publish: ports of the host that lead to the guest: "8080:80", "0.0.0.0:5353:53/udp";
                on the host's loopback unless an address is given. For "user".
            host_ports: ports of the host's loopback that the guest reaches at its gateway. For
                "user".
            mac: the adapter's MAC address; a random one unless given.
            mtu: largest payload of a frame.
            net_rate: bytes a second that the VM may send, or a text such as "10M".
            kernel: a `vmlinuz` or `vmlinux` instead of the image's own kernel.
            console: a binary file that the kernel's log is written to as it comes; the guest's own
                bytes, so look at them with care.
            env: environment variables of all programs, beside those that the image brings along;
                nothing of this process's own is passed on.
            user: who programs run as, unless they are started for another: "NAME", "UID",
                "NAME:GROUP" or "UID:GID", as the guest's /etc/passwd and /etc/group have them. A
                number needs no entry. The image's own unless given, and "root" if it says none.
                Files are copied, read and written as root.
            boot_timeout: seconds that the boot may take; 120 unless given, 600 without our agent.
            agent: False for an image that boots by itself, without our agent ("debian-stock"): it
                is ready when its kernel answers heartbeats, and can be watched, asked for facts
                and shut down, but runs no programs for us.
            on_hang: what becomes of a guest whose kernel answers no heartbeats: "report" leaves
                it alone (`health` says so), "kill" ends it.
            allow_missing_walls: names of walls around the VM's processes that may be missing
                where this host cannot give them.
            processor: "kvm" for the host's own, "soft" for ours in software, "auto" for the
                host's where it can run a guest.
            record: a file that takes all that the VM's course depends on, for `teuthis replay`:
                its whole memory, and everything that is sent into it. Such a VM runs on the
                software processor and cannot be saved or copied.
            cold: boot, where a VM would start from a template.
            warm: "python" to have an interpreter of the guest's own started already, of which each
                Python program is a fork. It is in the template; a VM that boots starts it then.
            cpus: virtual processors. More than one need the host's own ("kvm").

        Raises:
            ConfigurationError: an argument cannot be.
            KernelError: the kernel cannot be had or used.
            HostError: this host lacks something.
            RecordingError: the recording's file cannot be made.
            BootTimeout, GuestPanic, …: the guest did not come up.
        """
        size = settings.memory_size(memory)
        if boot_timeout is None:
            boot_timeout = BOOT_TIMEOUT if agent else INIT_BOOT_TIMEOUT
        settings.time_limit(boot_timeout)
        chosen = store.find(image)
        boot.check_agent(chosen, agent)
        root = boot.root_disk(chosen, keep)
        net = _wanted(
            network, publish=publish, host_ports=host_ports, mac=mac, mtu=mtu, rate=net_rate
        )
        variables = settings.environment(DEFAULT_ENVIRONMENT, chosen.defaults.env, env)
        own_user = settings.user(chosen.defaults.user or ROOT if user is None else user)
        if on_hang not in ("report", "kill"):
            raise ConfigurationError(f"on_hang={on_hang!r}: say 'report' or 'kill'")
        if interpreters.kind(warm) is not None and not agent:
            raise ConfigurationError("without an agent nothing can be kept warm: leave out `warm`")
        if record is not None and (processor not in ("auto", "soft") or cpus != 1):
            raise ConfigurationError(
                "`record` needs the software processor: leave out `processor` and `cpus`"
            )
        self.processor = "soft" if record is not None else choose(processor, cpus)
        saved = None
        boots = cold or console or keep or kernel or record
        with Reserved(size, cpus, allow_missing_walls) as reserved:
            if self.processor == "soft" and agent and not boots:
                make = _make_template if warm is None else _make_warm_template
                saved = templates.open_template(
                    chosen,
                    size,
                    warm,
                    lambda path: make(path, chosen, size, boot_timeout, allow_missing_walls),
                )
            start: Start
            if saved is None:
                disks = [*root, *disks]
                start = boot.load(
                    chosen,
                    self.processor,
                    None if kernel is None else Path(kernel),
                    disks=len(disks),
                    drivers=boot.drivers(chosen, disks=bool(disks), network=net is not None),
                    agent=agent,
                    console=console is not None,
                    cpus=cpus,
                )
            else:
                start = saved
            with saved or nullcontext():
                machine = Machine(
                    reserved,
                    start,
                    console,
                    disks,
                    net,
                    agent=agent,
                    end_when_hung=on_hang == "kill",
                    processor=self.processor,
                    record=None if record is None else os.fspath(record),
                )
        self._begin(machine, variables, own_user, boot_timeout)
        if warm is not None and saved is None:
            try:
                interpreters.start(self, chosen)
            except BaseException:
                self.close()
                raise

    def _begin(self, machine: Machine, env: Mapping[str, str], user: str, timeout: float) -> None:
        """Takes a machine over and waits until its agent is ready."""
        super().__init__(machine, env, user)
        self.machine = machine
        self._finalizer = weakref.finalize(self, machine.close)
        try:
            machine.ready.result(timeout)
        except TimeoutError:
            self.close()
            words = machine.console.last_words()
            raise BootTimeout(
                f"the guest was not ready after {timeout:g} s: give it more time "
                "(`boot_timeout`) or look at its log (`console`, --console)"
                + (f"\n{words}" if words else "")
            ) from None
        except BaseException:
            self.close()
            raise

    # ---- saved machines ------------------------------------------------------------------------

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Saves the VM to a new directory; `VM.restore` starts others from it.

        It goes on, unless it is paused.

        Programs that run are part of it, but nobody can talk to them in a restored VM.

        Raises:
            SnapshotError: the directory exists, or the VM cannot be saved now.
            VMError: the VM is no more.
        """
        directory = Path(path)
        with self._save() as saved:
            snapshot.write(directory, saved, dict(self.environment), self.user)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        *,
        console: Sink | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        publish: bool = True,
        allow_missing_walls: Collection[str] = (),
    ) -> Self:
        """Starts a VM that goes on where a snapshot was made; all else is as it was there.

        Args:
            path: the snapshot's directory.
            console: a binary file that the kernel's log is written to from now on.
            env: environment variables of all programs, beside those that the VM had.
            user: who programs run as; as there unless given.
            publish: whether the ports of this host that led to the VM lead to this one.
            allow_missing_walls: as of `VM`.

        Raises:
            SnapshotError: the snapshot is damaged, cut off, newer, or none at all.
            HostError: this host lacks something.
        """
        saved, manifest = snapshot.read(Path(path))
        with saved:
            variables = settings.environment(manifest.env, env)
            own_user = settings.user(manifest.user if user is None else user)
            machine = _restored(saved, console, allow_missing_walls, publish=publish)
        return cls._ready_with(machine, variables, own_user)

    def fork(self, count: int = 1) -> list[Self]:
        """Running copies of the VM, which goes on. They share its memory until they change it.

        Each has disks and a network adapter of its own; ports of this host that lead to the guest
        go on leading to the VM itself.

        Raises:
            ConfigurationError: not a positive number of copies.
            SnapshotError: the VM cannot be copied now.
            HostError: this host lacks something.
        """
        if count < 1:
            raise ConfigurationError(f"{count} copies: ask for one at least")
        machines: list[Machine] = []
        try:
            with self._save() as saved:
                for _ in range(count):  # all are under way before any of them is waited for
                    machines.append(_restored(saved))
            return [self._ready_with(machine, self.environment, self.user) for machine in machines]
        except BaseException:
            for machine in machines:
                machine.close()
            raise

    def _save(self) -> Saved:
        memory = os.memfd_create("teuthis-saved", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        saved = self.machine.save(memory)
        seal(saved.template)
        return saved

    @classmethod
    def _ready_with(cls, machine: Machine, env: Mapping[str, str], user: str) -> Self:
        vm = cls.__new__(cls)
        vm.processor = machine.processor
        vm._begin(machine, env, user, BOOT_TIMEOUT)
        return vm

    def __repr__(self) -> str:
        return f"<VM {'closed' if self.closed else 'running'}>"

    @property
    def address(self) -> str | None:
        """The VM's IPv4 address on its network; None: it has none."""
        attached = self.machine.attached
        return attached.address if attached else None

    def close(self) -> None:
        """Ends the VM at once; both its processes are gone when this returns."""
        self._finalizer()


def _restored(
    saved: Saved,
    console: Sink | None = None,
    allow_missing_walls: Collection[str] = (),
    *,
    publish: bool = False,
) -> Machine:
    """A machine that goes on from a saved one; `publish`: as do its ports on the host."""
    if saved.processor == "kvm" and not (verdict := kvm()).usable:
        raise SnapshotError(
            f"the machine was saved on KVM and goes on only there; {DEVICE} cannot run a guest "
            f"here: {verdict.reason}"
        )
    network = saved.network
    with Reserved(saved.memory_size, saved.cpus, allow_missing_walls) as reserved:
        return Machine(
            reserved,
            saved,
            console,
            network=network and network.elsewhere(network.publish if publish else ()),
            agent=saved.agent,
            end_when_hung=saved.end_when_hung,
            processor=saved.processor,
        )


def _make_template(
    directory: Path, image: Image, size: int, timeout: float, allow_missing_walls: Collection[str]
) -> None:
    """Boots a VM that others start from, and saves it when all its drivers are there."""
    root = boot.root_disk(image, None)
    drivers = boot.drivers(image, disks=True, network=True)
    start = boot.load(image, "soft", disks=len(root), drivers=drivers)
    vm = VM.__new__(VM)
    vm.processor = "soft"
    with Reserved(size, allow_missing_walls=allow_missing_walls) as reserved:
        machine = Machine(reserved, start, None, root)
    vm._begin(machine, {}, ROOT, timeout)
    with vm:
        _settle(vm)
        vm.snapshot(directory)
    _learn_first_pages(directory, allow_missing_walls)


def _make_warm_template(
    directory: Path, image: Image, size: int, timeout: float, allow_missing_walls: Collection[str]
) -> None:
    """The same with an interpreter that waits: made of a VM that others start from."""
    with VM(
        size,
        image=image.name,
        boot_timeout=timeout,
        allow_missing_walls=allow_missing_walls,
        processor="soft",
    ) as vm:
        interpreters.start(vm, image)
        vm.snapshot(directory)
    _learn_first_pages(directory, allow_missing_walls)


def _learn_first_pages(directory: Path, allow_missing_walls: Collection[str]) -> None:
    """Lets a new template know which pages its guests touch first: those that one of them did.

    Without that they start as well, a little later.
    """
    with suppress(TeuthisError, OSError):
        saved, _ = snapshot.read(directory)
        with saved:
            machine = _restored(saved, allow_missing_walls=allow_missing_walls)
        with VM._ready_with(machine, DEFAULT_ENVIRONMENT, ROOT) as vm:
            _run_nothing(vm)
            first_pages.write(directory, vm.machine.memory, saved.pages)


def _settle(vm: VM) -> None:
    """Lets a guest do what each VM from its template would do: load all drivers, run a program."""
    _run_nothing(vm)
    deadline = time.monotonic() + _SETTLE_SECONDS
    while vm.health is not Health.ALIVE and time.monotonic() < deadline:
        time.sleep(0.02)


def _run_nothing(vm: VM) -> None:
    with suppress(CommandNotFound, CommandNotExecutable):
        vm.run(["true"], user=ROOT)


def _wanted(network: str | None, **settings: Any) -> Wanted | None:
    """The network that was asked for, if any."""
    if network is None and all(value is None or value == () for value in settings.values()):
        return None
    from teuthis.root.network.wanted import wanted

    return wanted(network, **settings)


def run(
    argv: Sequence[str],
    input: bytes = b"",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    check: bool = False,
    *,
    user: str | None = None,
    memory: int | str = DEFAULT_MEMORY,
    image: str = store.TINY,
    kernel: str | os.PathLike[str] | None = None,
    max_output: int = MAX_OUTPUT,
) -> Result:
    """Runs one program in a VM of its own; see `VM` and `VM.run`."""
    with VM(memory, image=image, kernel=kernel) as vm:
        return vm.run(argv, input, timeout, env, cwd, check, user=user, max_output=max_output)
