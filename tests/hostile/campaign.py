"""Campaigns against the machine: a hostile guest inside, a second writer beside it, a judge.

The guest is a program of ours in place of a kernel (`guest.c`): it attacks every flow that a
guest has, and behaves well enough in between to be let further in. Whatever it does, its VM goes on
or ends with a reason, and that is what `attack` checks.
"""

import hashlib
import mmap
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import teuthis
from teuthis.flows import Count
from teuthis.protocol import Exec, Stop
from teuthis.root import loader
from teuthis.root.disks import Disk
from teuthis.root.loader import BootState
from teuthis.root.machine import Machine
from teuthis.root.reserved import Reserved

HERE: Final = Path(__file__).parent
MEMORY: Final = 64 << 20
_MAGIC: Final = b"sihtuthe"
_MAX_PRIVATE: Final = 256 << 20
"""Bytes of memory of its own that no process of a VM exceeds, whatever the guest does: most of it
are two million decoded instructions, then the code cache starts anew."""

_DISK: Final = bytes(range(256)) * 8192  # 2 MiB
_PATIENCE: Final = 60.0
"""Seconds that a VM may take to end, on a busy host too."""

_DEFECTS: Final = ("defect", "died", "broke the rules")
"""Words of the endings that no guest may cause."""


_FLAGS: Final = (
    *("-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-mgeneral-regs-only"),
    *("-mno-red-zone", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-asynchronous-unwind-tables", "-nostdlib", "-static", "-Wl,--build-id=none"),
    *("-Wl,-z,noexecstack", "-Wl,-Ttext=0x1000000"),
)


def build(directory: Path) -> Path:
    """Compiles the hostile guest, an ELF file that the loader takes as a kernel."""
    guest = directory / "hostile-guest"
    sources = [str(HERE / name) for name in ("machine.c", "vmbus.c", "guest.c")]
    subprocess.run(["gcc", *_FLAGS, "-o", str(guest), *sources], check=True)
    return guest


def defect(ending: str) -> bool:
    """Whether a VM's ending, as its owner is told, is one that no guest may bring about."""
    ours = ending.splitlines()[0]  # the rest is what the guest said
    return any(word in ours for word in _DEFECTS)


@dataclass
class Verdict:
    """What became of one attack."""

    seed: int
    ending: str = "goes on"
    private: int = 0
    """Most bytes of its own that a process of the VM held."""
    commands: int = 0
    """Commands that the guest's false agent was asked to run."""
    stuck: bool = False
    """Whether the VM did not end when it was asked to."""
    closing: float = 0.0
    """Seconds that ending the VM took."""
    disks: str = ""
    """What became of files that the guest must not change."""
    flows: dict[str, Count] = field(default_factory=dict)

    @property
    def defect(self) -> str:
        """What a guest must never bring about, or nothing."""
        if defect(self.ending):
            return self.ending
        if self.disks:
            return self.disks
        if self.private > _MAX_PRIVATE:
            return f"a process grew to {self.private >> 20} MiB"
        if self.stuck:
            return "a process of the VM is stuck"
        if self.closing > _PATIENCE:
            return f"the VM took {self.closing:.1f} s to end"
        return ""


class Disks:
    """The guest's disks: one that it may write to, one that it may not, a layer over a base."""

    def __init__(self, directory: Path) -> None:
        self._written = directory / "written.img"
        self._locked = [directory / "read-only.img", directory / "base.img"]
        for path in (self._written, *self._locked):
            path.write_bytes(_DISK)
        self.given = [
            Disk(self._written),
            Disk(self._locked[0], read_only=True),
            Disk(self._locked[1], copy_on_write=True, layer_limit="64K"),
        ]

    @property
    def damage(self) -> str:
        """What is not as it must be, or nothing."""
        if self._written.stat().st_size != len(_DISK):
            return "a disk has another size"
        changed = [path.name for path in self._locked if path.read_bytes() != _DISK]
        return f"{changed[0]} was changed" if changed else ""


class Meanwhile:
    """What goes on in a thread of its own during a `with` block."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._close()

    def _work(self) -> None:
        """Until `_stop` is set."""
        raise NotImplementedError

    def _close(self) -> None:
        """When nothing goes on any more."""
        raise NotImplementedError


class Neighbour(Meanwhile):
    """Another VM on the same host, whose commands must not notice anything."""

    def __init__(self) -> None:
        super().__init__()
        self._vm = teuthis.VM("128M")
        self.commands = 0
        self.failure: BaseException | None = None

    def _close(self) -> None:
        self._vm.close()

    def _work(self) -> None:
        try:
            while not self._stop.wait(0.05):
                data = os.urandom(20000)
                digest = hashlib.sha256(data).hexdigest().encode()
                result = self._vm.run(["sha256sum"], input=data, timeout=300)
                assert result.stdout.split()[0] == digest, result
                self.commands += 1
        except BaseException as error:
            self.failure = error


class Scribbler(Meanwhile):
    """A second writer: scribbles over the pages that both processes read, while they read them."""

    def __init__(self, descriptor: int, seed: int) -> None:
        """Takes over a descriptor of the guest's memory."""
        super().__init__()
        self._ram = mmap.mmap(descriptor, MEMORY)
        os.close(descriptor)
        self._random = random.Random(seed)

    def _close(self) -> None:
        self._ram.close()

    def _targets(self) -> tuple[int, int, int, int]:
        """Message page, event page, rings, their size: as the guest's program lays them down."""
        at = self._ram.find(_MAGIC)
        words = memoryview(self._ram)[at + 8 : at + 40].cast("Q")
        try:
            return words[0], words[1], words[2], words[3]
        finally:
            words.release()

    def _work(self) -> None:
        chance, ram = self._random, self._ram
        messages, events, rings, size = self._targets()
        halves = range(rings, rings + size, 8 << 12)
        while not self._stop.wait(0.001):
            for _ in range(50):
                half = chance.choice(halves)
                at = chance.choice(
                    (
                        half + 4 * chance.choice((0, 1, 2, 3, 16)),
                        half + 4096 + 4 * chance.randrange(7 * 1024),
                        messages + 0x200 + 4 * chance.randrange(64),
                        events + 0x200 + 4 * chance.randrange(64),
                    )
                )
                word = chance.choice(
                    (0, 8, 4096, 7 * 4096 - 8, 7 * 4096, 1 << 31, chance.getrandbits(32))
                )
                ram[at : at + 4] = word.to_bytes(4, "little")


class _Client:
    """Asks the guest's false agent to run commands, and reads whatever it says they wrote."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.commands = 0

    def ask(self) -> None:
        """One more command, unless enough are under way. Raises the VM's end."""
        output, inlet = os.pipe2(os.O_CLOEXEC)
        source, outlet = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._use, args=(output, outlet), daemon=True).start()
        try:
            self._machine.submit(
                lambda number: Exec(number, ["x"], {}, "/"), [source, inlet, inlet]
            )
            self.commands += 1
        finally:
            os.close(inlet)
            os.close(source)

    @staticmethod
    def _use(output: int, outlet: int) -> None:
        with suppress(OSError):
            os.write(outlet, bytes(50000))
        os.close(outlet)
        while os.read(output, 65536):
            pass
        os.close(output)

    def close(self) -> None:
        os.close(self._null)


def attack(guest: Path, initrd: Path, seed: int, seconds: float, *, scribble: bool) -> Verdict:
    """Runs the hostile guest with `seed` for some seconds and tells what became of it."""
    verdict = Verdict(seed)
    arguments = f"seed={seed} milliseconds={int(seconds * 1000)}"
    memory: list[int] = []

    def load(descriptor: int, size: int, _: str) -> BootState:
        memory.append(os.dup(descriptor))
        return loader.load(descriptor, size, guest, initrd, arguments)

    disks = Disks(guest.parent)
    with Reserved(MEMORY) as reserved:
        machine = Machine(reserved, load, None, disks=disks.given)
    pids = machine.processes.values()
    client = _Client(machine)
    deadline = time.monotonic() + seconds + 5
    try:
        if scribble:
            with Scribbler(memory.pop(), seed):
                _watch(machine, client, pids, verdict, deadline)
        else:
            os.close(memory.pop())
            _watch(machine, client, pids, verdict, deadline)
    finally:
        began = time.monotonic()
        machine.close()
        verdict.closing = time.monotonic() - began
        client.close()
    verdict.disks = disks.damage
    verdict.commands = client.commands
    verdict.flows = machine.flows()
    return verdict


def _watch(
    machine: Machine, client: _Client, pids: Iterable[int], verdict: Verdict, deadline: float
) -> None:
    while time.monotonic() < deadline:
        verdict.private = max(verdict.private, *(private_memory(pid) for pid in pids))
        try:
            if machine.ready.done() and client.commands < 200:
                client.ask()
            machine.raise_end(0.05)
        except teuthis.VMError as error:
            verdict.ending = f"{type(error).__name__}: {error}"
            return
    # Whatever the guest is doing now, both processes obey.
    machine.tell(Stop())
    try:
        machine.raise_end(_PATIENCE)
    except teuthis.VMClosed:
        return
    except teuthis.VMError as error:
        verdict.ending = f"{type(error).__name__}: {error}"
    else:
        verdict.stuck = True


def private_memory(pid: int) -> int:
    """Bytes that are a process's own; guest RAM is shared and not among them."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("RssAnon:")
    return int(rest.split()[0]) << 10 if found else 0
