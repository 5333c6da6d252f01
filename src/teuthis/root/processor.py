"""Which processor runs a guest: the host's own through KVM, or ours in software.

A `/dev/kvm` that is there need not be able to run a stock kernel: some emulate kernel code. So a
tiny guest tries it once for each boot of the host, before the first VM that might use it.
"""

import os
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from teuthis import programs
from teuthis.errors import ConfigurationError, HostError
from teuthis.flows import FLOWS
from teuthis.images import cache

Choice = Literal["auto", "kvm", "soft"]
Processor = Literal["kvm", "soft"]

MAX_CPUS: Final = FLOWS["kvm.apic"].values["processors_max"]
DEVICE: Final = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PATIENCE = 10.0
"""Seconds after which a probe is given up; it takes milliseconds, on a slow KVM a third of one."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether KVM can run guests here, and why not."""

    usable: bool
    reason: str = ""


class _Record(msgspec.Struct, frozen=True):
    """A verdict, and what it holds for."""

    host: list[str]
    verdict: Verdict


def choose(wanted: str, cpus: int = 1) -> Processor:
    """The processor for a VM that is to have `cpus` of kind `wanted`; "auto": KVM where it works.

    Raises:
        ConfigurationError: there is no such choice, or not so many of them.
        HostError: KVM is wanted, or needed for so many, and cannot be used; says why.
    """
    if wanted not in get_args(Choice):
        raise ConfigurationError(
            f"there is no processor {wanted!r}: choose one of {', '.join(get_args(Choice))}"
        )
    if not 1 <= cpus <= MAX_CPUS:
        raise ConfigurationError(f"{cpus} processors: a VM has 1 to {MAX_CPUS}")
    if wanted == "soft":
        if cpus > 1:
            raise ConfigurationError(
                f"{cpus} processors need KVM, and the software processor was asked for: "
                "choose `auto` or `kvm`, or one processor"
            )
        return "soft"
    verdict = kvm()
    if not verdict.usable and cpus > 1:
        raise HostError(
            f"{cpus} processors need KVM, and {DEVICE} cannot run a guest: {verdict.reason}. "
            "With one processor the VM runs in software on any host"
        )
    if not verdict.usable and wanted == "kvm":
        raise HostError(
            f"{DEVICE} cannot run a guest: {verdict.reason}. "
            "The software processor runs it on any host: choose `soft` or `auto`"
        )
    return "kvm" if verdict.usable else "soft"


def open_device() -> int:
    """A descriptor of KVM.

    Raises:
        OSError: there is none, or this user may not use it.
    """
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)


def kvm(*, anew: bool = False) -> Verdict:
    """Whether KVM can run guests on this host; tried once and remembered until its next boot.

    Args:
        anew: tries it now, whatever is remembered.
    """
    try:
        device = open_device()
    except FileNotFoundError:
        return Verdict(False, "this host has none")
    except OSError as error:
        return Verdict(False, f"it cannot be opened ({error.strerror})")
    try:
        program = programs.find(programs.HYPERVISOR_KVM)
        host = _host(program)
        known = cache.directory("kvm") / "verdict.json"
        remembered = None if anew else _read(known)
        if remembered is not None and remembered.host == host:
            return remembered.verdict
        verdict = _probe(program, device)
        with cache.new_file(known) as file:
            file.write(msgspec.json.encode(_Record(host, verdict)))
        return verdict
    finally:
        os.close(device)


def _host(program: Path) -> list[str]:
    """What a verdict depends on: this boot of the host, its kernel, the program that asks."""
    status = program.stat()
    return [
        _BOOT_ID.read_text().strip(),
        os.uname().release,
        str(program),
        str(status.st_mtime_ns),
        str(status.st_size),
    ]


def _read(path: Path) -> _Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError):
        return None


def _probe(program: Path, device: int) -> Verdict:
    import subprocess

    try:
        done = subprocess.run(
            [program, "--probe-kvm-fd", str(device)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(device,),
            env={},
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"a tiny guest was not done after {_PATIENCE:g} s")
    words = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return Verdict(True)
    return Verdict(False, words or f"the probe ended with status {done.returncode}")
