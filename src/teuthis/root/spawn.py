"""Starts a process with exactly the descriptors it is given, and watches it by its pidfd."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress

from teuthis.errors import HostError


class Child:
    """A child of this process that belongs to a VM."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """Watches process `pid` by `pidfd`, which it takes over."""
        self.pid = pid
        self.pidfd = pidfd
        self._code: int | None = None

    @classmethod
    def start(
        cls, argv: Sequence[str], descriptors: Collection[int], *, stderr: int | None = None
    ) -> Child:
        """Starts `argv`; of our descriptors it gets those in `descriptors`, under their numbers.

        It lives in a session of its own, so that a terminal's ^C reaches its owner only, with an
        empty environment and no terminal. Its stderr goes to `stderr`, if that is given;
        `TEUTHIS_DEBUG` lets it through, for us.

        Raises:
            HostError: it could not be started.
        """
        if stderr is None and not os.environ.get("TEUTHIS_DEBUG"):
            stderr = subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=tuple(descriptors),
                start_new_session=True,
                env={},
                cwd="/",
            )
            try:
                pidfd = os.pidfd_open(process.pid)
            except OSError:
                process.kill()
                process.wait()
                raise
        except OSError as error:
            raise HostError(f"could not start {argv[0]}: {error.strerror}") from error
        process.returncode = 0  # from here on it is ours to wait for
        return cls(process.pid, pidfd)

    def wait(self, timeout: float | None) -> bool:
        """Waits until it has ended, at most `timeout` seconds; False if it has not."""
        if self._code is None:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                return False
            self._code = self._collect()
        return True

    def _collect(self) -> int:
        try:
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            return 0  # our program lets somebody else wait for all its children
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    @property
    def status(self) -> int:
        """Its exit status; negative for a signal, 0 while it lives."""
        return self._code or 0

    @property
    def fate(self) -> str:
        """How it ended: a signal's name or an exit status."""
        code = self._code
        if code is None:
            return "still there"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def kill(self) -> None:
        """Kills it if it is still alive."""
        if not self.wait(0):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.wait(5.0)

    def end(self) -> None:
        """Kills it if it is still alive, and forgets it."""
        self.kill()
        os.close(self.pidfd)
