"""Starts a process with exactly the descriptors it is given, and watches it by its pidfd."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final

from teuthis.errors import HostError

_IGNORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores them; programs that it starts are not to."""


class Child:
    """A child of this process that belongs to a VM."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """Watches process `pid` by `pidfd`, which it takes over."""
        self.pid = pid
        self.pidfd = pidfd
        self._code: int | None = None

    @classmethod
    def start(cls, argv: Sequence[str], descriptors: Collection[int]) -> Child:
        """Starts one of our own programs; it gets our descriptors `descriptors`, by their numbers.

        It lives in a session of its own, so that a terminal's ^C reaches its owner only, with an
        empty environment and no terminal. `TEUTHIS_DEBUG` lets its stderr through, for us.

        The kernel closes what is ours in it when it is executed. What somebody has made to be
        inherited, and our directory, the program lets go of by itself before all else, with its
        first wall; to find and close these from here takes milliseconds beside hundreds of VMs.

        Raises:
            HostError: it could not be started.
        """
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            *((os.POSIX_SPAWN_DUP2, given, given) for given in descriptors),  # to be inherited
        ]
        if not os.environ.get("TEUTHIS_DEBUG"):
            actions.append((os.POSIX_SPAWN_DUP2, 0, 2))
        try:
            pid = os.posix_spawn(
                argv[0], list(argv), {}, file_actions=actions, setsid=True, setsigdef=_IGNORED
            )
            return cls._watch(pid)
        except OSError as error:
            raise HostError(f"could not start {argv[0]}: {error.strerror}") from error

    @classmethod
    def start_foreign(
        cls, argv: Sequence[str], descriptors: Collection[int], *, stderr: int
    ) -> Child:
        """The same for somebody else's program, for which all else is closed; stderr as given.

        Raises:
            HostError: it could not be started.
        """
        import subprocess

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
            process.returncode = 0  # from here on it is ours to wait for
            return cls._watch(process.pid)
        except OSError as error:
            raise HostError(f"could not start {argv[0]}: {error.strerror}") from error

    @classmethod
    def _watch(cls, pid: int) -> Child:
        """Takes hold of a child that nobody has waited for yet. Raises `OSError`."""
        try:
            return cls(pid, os.pidfd_open(pid))
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

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
