"""What is known of a VM with a name: how it is started, who owns it, how it ended."""

import stat
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from teuthis import data
from teuthis.errors import TeuthisError
from teuthis.root.failure import Failure
from teuthis.root.life import ProcessId, boot
from teuthis.root.plan import Plan


class Ending(msgspec.Struct, frozen=True):
    """How a VM ended.

    Attributes:
        time: when, in seconds since 1970.
        asked: whether its user asked for it.
        failure: what ended it; None when its program came to its end.
        exit_code: its program's; 128 + n when signal n killed it; None if it did not end.
    """

    time: float
    asked: bool
    failure: Failure | None = None
    exit_code: int | None = None

    @classmethod
    def of(cls, error: TeuthisError, exit_code: int | None = None) -> "Ending":
        """By itself, as `error` tells."""
        return cls(time.time(), asked=False, failure=Failure.of(error), exit_code=exit_code)

    @classmethod
    def on_request(cls, exit_code: int | None = None) -> "Ending":
        """As its user asked."""
        return cls(time.time(), asked=True, exit_code=exit_code)

    @property
    def reason(self) -> str:
        """What happened, in one line."""
        if self.asked:
            return "stopped on request"
        if self.failure is not None:
            return self.failure.message
        return f"its program ended with exit code {self.exit_code}"


class Record(msgspec.Struct, frozen=True):
    """What is known of a VM.

    Attributes:
        name: unique among the user's VMs.
        id: names its directory; never given again.
        plan: how it is started.
        created: when it was first started, in seconds since 1970.
        run: names this start of it, and its keeper's socket.
        starter: the process that starts it, and then has nothing more to do with it.
        keeper: the process that owns it; None before its first word.
        ready: when its guest had booted; None before.
        ending: how it ended; None before.
    """

    name: str
    id: str
    plan: Plan
    created: float
    run: str
    starter: ProcessId
    keeper: ProcessId | None = None
    ready: float | None = None
    ending: Ending | None = None

    @property
    def state(self) -> str:
        """What it is doing.

        One of "starting", "running", "paused", "stopped" (on request), "ended" (by itself), "dead".
        """
        if self.ending is not None:
            return "stopped" if self.ending.asked else "ended"
        if not self.live:
            return "dead"
        if self.ready is None:
            return "starting"
        return "paused" if self.paused else "running"

    @property
    def live(self) -> bool:
        """Whether it starts or runs."""
        return self.ending is None and self._owner.alive

    @property
    def paused(self) -> bool:
        """Whether its keeper has it stand still."""
        return self._paused.exists()

    def mark_paused(self, paused: bool) -> None:
        """Said by its keeper. A file, as it is no news of a VM that has ended or starts again."""
        with suppress(OSError):
            if paused:
                self._paused.touch(mode=0o600)
            else:
                self._paused.unlink(missing_ok=True)

    @property
    def _paused(self) -> Path:
        return self.directory / f"{self.run}.paused"

    @property
    def _owner(self) -> ProcessId:
        return self.keeper or self.starter

    @property
    def reason(self) -> str:
        """Why it is not running; empty while it is."""
        if self.ending is not None:
            return self.ending.reason
        if self.live:
            return ""
        if self._owner.boot != boot():
            return "this host was restarted"
        who = "its keeper" if self.keeper else "the command that started it"
        return f"{who}, process {self._owner.pid}, died or was killed"

    @property
    def socket(self) -> Path:
        """Where its keeper listens."""
        return self.directory / f"{self.run}.sock"

    @property
    def directory(self) -> Path:
        """Where its files are."""
        vms = data.directory("vms")
        data.see_private(vms, stat.S_ISDIR)
        return vms / self.id
