"""How a VM with a name is to be started: all that its user said, kept as it was said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from teuthis.root.console import Sink
    from teuthis.root.vm import VM


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Arguments of `VM`, and the program that the VM is for, if it is for one.

    Attributes:
        command: the VM ends when this program does; empty: it goes on until it is stopped.
        workdir: where the program starts.
    """

    memory: int | str = "256M"
    kernel: str | None = None
    env: dict[str, str] = {}
    allow_missing_walls: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workdir: str = "/"

    def start(self, console: Sink) -> VM:
        """Boots the VM; raises what `VM` raises."""
        from teuthis.root.vm import VM

        return VM(
            self.memory,
            kernel=self.kernel,
            env=self.env,
            allow_missing_walls=self.allow_missing_walls,
            console=console,
        )


def host_path(path: str | os.PathLike[str] | None) -> str | None:
    """A path of this host that means the same from every working directory."""
    return None if path is None else str(Path(path).absolute())
