"""`teuthis doctor`: what this machine has, and what it lacks."""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from teuthis import programs
from teuthis.errors import TeuthisError
from teuthis.images import debian
from teuthis.jail import host
from teuthis.jail.walls import NAMES
from teuthis.root import cgroup, processor

_KERNEL_MINIMUM = (5, 10)
_SHARED_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def main() -> None:
    """Show what this machine has for running VMs, and what it lacks.

    The exit code is 0 if VMs can run here.
    """
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("", "", Column(overflow="fold"), box=None, show_header=False)
    fine = True
    for what, good, says in _findings():
        fine = fine and good is not False
        mark = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[dim]info[/]"}[good]
        table.add_row(mark, what, says)
    Console(highlight=False).print(table)
    raise typer.Exit(0 if fine else 1)


def _findings() -> Iterator[tuple[str, bool | None, str]]:
    """What was looked at, whether it is good (None: no matter), and what there is to say."""
    machine = platform.machine()
    yield "processor", machine == "x86_64", f"{machine}, {os.cpu_count()} CPUs"
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    yield "host kernel", numbers >= _KERNEL_MINIMUM, f"Linux {release}"
    yield "Python", sys.version_info >= (3, 11), platform.python_version()
    pages = {name: os.sysconf(f"SC_{name}PHYS_PAGES") for name in ("", "AV")}
    page = os.sysconf("SC_PAGE_SIZE")
    yield (
        "memory",
        pages["AV"] * page > 512 << 20,
        f"{pages['AV'] * page >> 20} MiB free of {pages[''] * page >> 20} MiB",
    )
    absent = host.missing()
    yield (
        "walls",
        not absent,
        "; ".join(f"{name} is missing: {reason}" for name, reason in absent.items())
        or f"all {len(NAMES)} around a VM's processes",
    )
    yield "control groups", *_control_groups()
    for name in (programs.HYPERVISOR, programs.HYPERVISOR_KVM, programs.GUEST_AGENT):
        try:
            yield name, True, str(programs.find(name))
        except TeuthisError as error:
            yield name, False, str(error)
    yield "guest kernel", *_kernel()
    lacking = list(debian.missing())
    yield (
        "building images",
        None if lacking else True,
        "; ".join(lacking) or "`teuthis image build debian` can run",
    )
    yield "/dev/kvm", *_kvm()
    yield "huge pages", *_huge_pages()


def _control_groups() -> tuple[bool | None, str]:
    where = cgroup.place()
    if where is not None:
        return True, f"{', '.join(sorted(where.controllers))} for each VM, below {where.directory}"
    return None, (
        "none that we may divide: VMs are bounded by the limits of their processes alone "
        "(an ordinary user gets one with `systemd-run --user --scope -p Delegate=yes`)"
    )


def _kvm() -> tuple[bool | None, str]:
    try:
        verdict = processor.kvm(anew=True)
    except TeuthisError as error:
        return None, str(error)
    if verdict.usable:
        return True, "usable: a tiny guest ran on it"
    return None, f"not usable: {verdict.reason}; VMs run on the software processor"


def _huge_pages() -> tuple[bool | None, str]:
    try:
        setting = _SHARED_HUGE_PAGES.read_text().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        return None, "this kernel has none for guest RAM"
    if setting in ("always", "within_size", "advise", "force"):
        return True, f"for guest RAM where the host has them ({setting})"
    return None, (
        "not for guest RAM: with `advise` in "
        f"{_SHARED_HUGE_PAGES} guests on KVM get their memory much faster"
    )


def _kernel() -> tuple[bool | None, str]:
    from teuthis.images import cache

    packages = cache.directory("packages")
    kernels = sorted(Path(packages).glob("linux-image-*/boot/vmlinuz-*"))
    if kernels:
        return True, str(kernels[-1])
    return None, f"none in {packages} yet: the first run fetches it with apt"
