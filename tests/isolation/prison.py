"""Starts attackers behind the walls of each process of a VM, as root and as an ordinary user.

An attacker makes system calls from inside a jail that was raised by the very code of the worker or
of the hypervisor. `TEUTHIS_TEST_WITHOUT` names a wall to leave out (`make walls-matter`).
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from teuthis.jail import identity
from teuthis.jail.system_calls import NUMBERS
from teuthis.root import processor

ROOT: Final = Path(__file__).parents[2]
NOBODY: Final = 65534
SIGSYS: Final = 31
OF_RUST: Final = ("hypervisor", "replay")
WITHOUT: Final = os.environ.get("TEUTHIS_TEST_WITHOUT", "").split()
IS_ROOT: Final = os.geteuid() == 0


@functools.cache
def build_prisoner() -> list[str]:
    """The prisoner of the hypervisor's side, built when needed."""
    cargo = shutil.which("cargo")
    if cargo and not WITHOUT:  # `walls_matter.py` has built it
        build = [cargo, "build", "--quiet", "--locked", "-p", "teuthis-hypervisor"]
        subprocess.run([*build, "--example", "prisoner"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return [str(target / "debug/examples/prisoner")]


def _ours(process: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("prisoner.py")), "--process", process]


def call(name: str, *arguments: object) -> str:
    """One system call in the prisoners' language."""
    return " ".join([str(NUMBERS[name]), *map(str, arguments)])


@dataclass(frozen=True)
class Prison:
    """One process's jail, entered by root or by an ordinary user.

    "replay" is the hypervisor's where it replays a recording, with no worker at its side.
    """

    process: str
    user: str
    kvm: bool = False
    """The hypervisor's, with a guest on the host's processor."""

    @property
    def id(self) -> str:
        return f"{self.process}{'-kvm' if self.kvm else ''}-{self.user}"

    @contextmanager
    def _command(self, without: Iterable[str]) -> Iterator[list[str]]:
        with identity.lease() as own:
            of_rust = self.process in OF_RUST
            command = list(build_prisoner() if of_rust else _ours(self.process))
            if self.user == "root":
                uid = own.hypervisor if of_rust else own.worker
                command += ["--uid", str(uid)]
            elif IS_ROOT:
                command += ["--as", str(NOBODY)]
            if self.process == "replay":
                command += ["--replays", "yes"]
            if self.kvm:
                command += ["--kvm", str(processor.DEVICE)]
            for wall in {*without, *WITHOUT}:
                command += ["--without", wall]
            yield command

    def attempt(
        self, attacks: Iterable[str], *, without: Iterable[str] = (), given: Iterable[int] = ()
    ) -> list[str]:
        """The answers to `attacks`, each made behind walls of its own."""
        lines = "".join(f"{attack}\n" for attack in attacks)
        with self._command(without) as command:
            result = subprocess.run(
                command,
                input=lines,
                capture_output=True,
                text=True,
                pass_fds=tuple(given),
                check=True,
                timeout=500,
            )
        answers: list[str] = result.stdout.splitlines()
        assert len(answers) == lines.count("\n"), result.stdout + result.stderr
        return answers

    @contextmanager
    def inmate(self, without: Iterable[str] = (), given: Iterable[int] = ()) -> Iterator[int]:
        """The process id of somebody behind the walls who does nothing, to be looked at."""
        with self._command(without) as command:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                pass_fds=tuple(given),
            )
            assert process.stdin is not None
            assert process.stdout is not None
            with process, process.stdin:
                process.stdin.write("wait\n")
                process.stdin.flush()
                word, number = process.stdout.readline().split(maxsplit=1)
                assert word == "locked", number
                yield int(number)


USERS: Final = ("root", "user") if IS_ROOT else ("user",)


def _may_open(user: str) -> bool:
    """Whether KVM lets `user` in, who is nobody when we are root."""
    mode = processor.DEVICE.stat().st_mode
    return user == "root" or (mode & 6 == 6 if IS_ROOT else os.access(processor.DEVICE, 6))


PRISONS: Final = [
    Prison(process, user) for process in ("worker", "switch", *OF_RUST) for user in USERS
] + [
    Prison("hypervisor", user, kvm=True)
    for user in USERS
    if processor.DEVICE.exists() and _may_open(user) and processor.kvm().usable
]
