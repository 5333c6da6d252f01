"""Starts a process with exactly the descriptors it is given, and watches it by its pidfd."""

import os
import select
import signal
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress

from teuthis.errors import HostError


class Child:
    """A process of a VM."""

    def __init__(
        self, argv: Sequence[str], descriptors: Collection[int], *, stderr: int | None = None
    ) -> None:
        """Starts `argv`; of our descriptors it gets those in `descriptors`, under their numbers.

        It lives in a session of its own, so that a terminal's ^C reaches its owner only, with an
        empty environment and no terminal. Its stderr goes to `stderr`, if that is given;
        `TEUTHIS_DEBUG` lets it through, for us.

        Raises:
            HostError: it could not be started.
        """
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr
                if stderr is not None
                else None
                if os.environ.get("TEUTHIS_DEBUG")
                else subprocess.DEVNULL,
                pass_fds=tuple(descriptors),
                start_new_session=True,
                env={},
                cwd="/",
            )
            self.pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            raise HostError(f"could not start {argv[0]}: {error.strerror}") from error
        self.pid = self._process.pid

    def wait(self, timeout: float) -> bool:
        """Waits until it has ended, at most `timeout` seconds; False if it has not."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            return False
        self._process.wait()
        return True

    @property
    def status(self) -> int:
        """Its exit status; negative for a signal, 0 while it lives."""
        return self._process.returncode or 0

    @property
    def fate(self) -> str:
        """How it ended: a signal's name or an exit status."""
        code = self._process.returncode
        if code is None:
            return "still there"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """Kills it if it is still alive, and forgets it."""
        if not self.wait(0):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.wait(5.0)
        os.close(self.pidfd)
