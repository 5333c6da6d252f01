"""The host's processes, as far as the tests must look at them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

CLI = [sys.executable, "-m", "teuthis"]
PATIENCE = 100.0
"""Seconds that nothing takes longer than, on a busy host either."""


def children(parent: int) -> set[int]:
    """Process ids of the living children of `parent`; its zygote is not one of a VM's own."""
    return {pid for pid in _children(parent) if not _is_zygote(pid)}


def zygotes(parent: int) -> set[int]:
    """Process ids of the zygotes of `parent`."""
    return {pid for pid in _children(parent) if _is_zygote(pid)}


def _children(parent: int) -> set[int]:
    return {
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if (fields := _stat(path)) and fields[1] == str(parent) and fields[0] != "Z"
    }


def _is_zygote(pid: int) -> bool:
    """A worker has the command line of the zygote that it comes from, and a name of its own."""
    home = Path(f"/proc/{pid}")
    try:
        line, name = (home / "cmdline").read_bytes(), (home / "comm").read_bytes()
    except OSError:
        return False
    return b"--requests-fd" in line and name != b"teuthis-worker\n"


def _stat(path: Path) -> list[str]:
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pids: Iterable[int]) -> set[int]:
    """Those of `pids` that are still there and not zombies."""
    return {pid for pid in pids if _stat(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"])}


def open_files() -> set[tuple[str, int, int]]:
    """What this process has open: each descriptor with its file.

    Compared by what is new: readers of consoles close theirs when they see the end, by and by.
    """
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            status = path.stat()
        except OSError:  # the one that reads this directory
            continue
        found.add((path.name, status.st_dev, status.st_ino))
    return found


def await_true(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """Starts `teuthis` with pipes."""
    return subprocess.Popen(
        [*CLI, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | options.get("env", {}),  # type: ignore[operator]
    )


def run(
    *arguments: str, input: bytes = b"", timeout: float = 3 * PATIENCE
) -> subprocess.CompletedProcess[bytes]:
    """Runs `teuthis` to its end."""
    return subprocess.run(
        [*CLI, *arguments], input=input, capture_output=True, timeout=timeout, check=False
    )


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
