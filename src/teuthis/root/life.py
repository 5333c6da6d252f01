"""Whether a process that was started earlier still lives, and is the same one."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec


class ProcessId(msgspec.Struct, frozen=True):
    """A process of one boot of the host: its number alone is given again when it has ended.

    Attributes:
        boot: the host's boot, as the kernel names it.
        pid: its number.
        start: when it started, in clock ticks since the boot.
    """

    boot: str
    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether it still lives."""
        return self.boot == boot() and _start(self.pid) == self.start

    def wait(self, timeout: float) -> None:
        """Waits for its end, at most `timeout` seconds."""
        with self._hold() as pidfd:
            if pidfd is not None:
                _await(pidfd, timeout)

    def kill(self, timeout: float = 5.0) -> None:
        """Kills it, if it still lives, and waits for its end, at most `timeout` seconds."""
        with self._hold() as pidfd:
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _await(pidfd, timeout)

    @contextmanager
    def _hold(self) -> Iterator[int | None]:
        """A descriptor of it; None when it lives no more."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Asked after the number was taken hold of: it may be another's by now.
            yield pidfd if self.alive else None
        finally:
            os.close(pidfd)


def _await(pidfd: int, timeout: float) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(timeout * 1000)


def this_process() -> ProcessId:
    """The calling process."""
    start = _start(os.getpid())
    assert start is not None
    return ProcessId(boot(), os.getpid(), start)


def boot() -> str:
    """The name of the host's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start(pid: int) -> int | None:
    """When process `pid` started; None if there is none, or only what its parent must collect."""
    try:
        # Field 2 is the program's name, in parentheses, with whatever it likes in it (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
