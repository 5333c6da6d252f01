"""What any process could do if it fell: read from /proc, and its filters from the kernel.

It works for every process, so that a VM's can be put beside another virtual machine monitor's. For
other users' processes and for the filters one must be root; what cannot be read is None.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from teuthis import programs
from teuthis.errors import HostError
from teuthis.jail.bpf import Instruction, may_allow, unpack
from teuthis.jail.kernel import call
from teuthis.jail.system_calls import NUMBERS
from teuthis.protocol import PASST_MAC

NAMESPACES: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")

_ATTACH, _DETACH, _GET_FILTER = 16, 17, 0x420C
_WAIT_ALL: Final = 0x4000_0000
_INSTRUCTION_BYTES: Final = 8

_HYPERVISORS: Final = {programs.HYPERVISOR, programs.HYPERVISOR_KVM}
_OURS: Final = {b"teuthis.worker", b"teuthis.switch", PASST_MAC.encode()}
"""Words of the command lines of our processes, passt's among them."""


class Surface(msgspec.Struct, frozen=True):
    """One process, as its attacker would find it.

    Attributes:
        user: its effective user id.
        capabilities: how many it holds, and how many it could hold again.
        system_calls: how many of all known calls its filters let pass with some arguments.
        namespaces: which of them it does not share with the process that asks.
        descriptors: how many of each kind are open.
        mounts: file systems that it sees; `writable_mounts` those that are not read-only.
        writable_code: mappings that are writable and executable.
    """

    pid: int
    program: str
    user: int
    threads: int
    capabilities: int
    bounding_capabilities: int
    no_new_privileges: bool
    filters: int
    system_calls: int | None
    namespaces: list[str] | None
    descriptors: dict[str, int] | None
    mounts: int | None
    writable_mounts: int | None
    executable_mappings: int | None
    writable_code: int | None
    limits: dict[str, str] | None


def surface(pid: int) -> Surface:
    """The surface of the process `pid`. Its filters are read in a stop of some microseconds.

    Raises:
        HostError: there is no such process.
    """
    home = Path(f"/proc/{pid}")
    try:
        lines = (home / "status").read_text().splitlines()
    except OSError as error:
        raise HostError(f"there is no process {pid}: `ps` lists those there are") from error
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    filters = int(status.get("Seccomp_filters", "0"))
    mounts = _lines(home / "mountinfo")
    maps = _lines(home / "maps")
    modes = None if maps is None else [line.split()[1] for line in maps]
    return Surface(
        pid=pid,
        program=status["Name"],
        user=int(status["Uid"].split()[1]),
        threads=int(status["Threads"]),
        capabilities=(int(status["CapPrm"], 16) | int(status["CapEff"], 16)).bit_count(),
        bounding_capabilities=int(status["CapBnd"], 16).bit_count(),
        no_new_privileges=status.get("NoNewPrivs") == "1",
        filters=filters,
        system_calls=_system_calls(pid) if filters else len(NUMBERS),
        namespaces=_own_namespaces(home),
        descriptors=_descriptors(home),
        mounts=None if mounts is None else len(mounts),
        writable_mounts=None
        if mounts is None
        else sum("ro" not in line.split()[5].split(",") for line in mounts),
        executable_mappings=None if modes is None else sum("x" in mode for mode in modes),
        writable_code=None if modes is None else sum("wx" in mode for mode in modes),
        limits=_limits(home),
    )


def processes() -> list[int]:
    """The processes of all VMs on this host, as far as the caller can see them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            # A worker has its command line from the zygote, which serves no VM.
            if path.with_name("comm").read_bytes() == b"teuthis-zygote\n":
                continue
            if Path(os.fsdecode(words[0])).name in _HYPERVISORS or _OURS & set(words):
                found.append(int(path.parent.name))
    return sorted(found)


def _lines(path: Path) -> list[str] | None:
    try:
        return path.read_text().splitlines()
    except OSError:
        return None


def _own_namespaces(home: Path) -> list[str] | None:
    try:
        return [
            name
            for name in NAMESPACES
            if (home / "ns" / name).readlink() != Path(f"/proc/self/ns/{name}").readlink()
        ]
    except OSError:
        return None


def _descriptors(home: Path) -> dict[str, int] | None:
    kinds: Counter[str] = Counter()
    try:
        for path in (home / "fd").iterdir():
            with suppress(FileNotFoundError):
                kinds[_kind(str(path.readlink()))] += 1
    except OSError:
        return None
    return dict(sorted(kinds.items()))


def _kind(target: str) -> str:
    if match := re.match(r"(?:anon_inode:)?\[?(\w+)\]?:?", target):
        if target.startswith("anon_inode:"):
            return match[1]
        if target.startswith(("socket:", "pipe:")):
            return match[1]
    if target.startswith("/memfd:"):
        return "memory"
    return target if target.startswith("/dev/") else "file"


def _limits(home: Path) -> dict[str, str] | None:
    lines = _lines(home / "limits")
    if lines is None:
        return None
    return {line[:26].strip().removeprefix("Max "): line[47:67].strip() for line in lines[1:]}


def _system_calls(pid: int) -> int | None:
    try:
        with _stopped(pid):
            filters = list(_filters(pid))
    except OSError:
        return None
    return sum(all(may_allow(each, number) for each in filters) for number in NUMBERS.values())


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    call("ptrace", _ATTACH, pid, None, None)
    try:
        os.waitpid(pid, _WAIT_ALL)
        yield
    finally:
        call("ptrace", _DETACH, pid, None, None)


def _filters(pid: int) -> Iterator[list[Instruction]]:
    """The programs of a stopped process, newest first."""
    index = 0
    while True:
        try:
            length = call("ptrace", _GET_FILTER, pid, index, None)
        except FileNotFoundError:
            return
        program = ctypes.create_string_buffer(length * _INSTRUCTION_BYTES)
        call("ptrace", _GET_FILTER, pid, index, program)
        yield unpack(program.raw)
        index += 1
