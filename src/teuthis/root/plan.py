"""How a VM with a name is to be started: all that its user said, kept as it was said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from teuthis.root.console import Sink
    from teuthis.root.disks import Disk
    from teuthis.root.vm import VM


ORIGIN: Final = "origin"
"""In a VM's directory: the snapshot of the VM that it is a copy of."""


class PlannedDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A `Disk`."""

    path: str
    read_only: bool = False
    copy_on_write: bool = False
    layer: str | None = None
    layer_limit: int | str | None = None

    @classmethod
    def of(cls, disk: Disk) -> PlannedDisk:
        """From what the user said."""
        return cls(
            os.fspath(Path(disk.path).absolute()),
            disk.read_only,
            disk.copy_on_write,
            host_path(disk.layer),
            disk.layer_limit,
        )

    def disk(self, layer: Path) -> Disk:
        """The disk. What would be thrown away when the VM ends goes into `layer`, to be kept."""
        from teuthis.root.disks import Disk

        own = layer if self.copy_on_write and self.layer is None else self.layer
        return Disk(self.path, self.read_only, self.copy_on_write, own, self.layer_limit)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Arguments of `VM`, and the program that the VM is for, if it is for one.

    Attributes:
        command: the VM ends when this program does; empty: it goes on until it is stopped.
        workdir: where the program starts.
        restore: a snapshot that it goes on from; all else but what may be said beside it is there.
        forked: it goes on from a copy of another VM, which lies in its directory (`ORIGIN`).
    """

    memory: int | str = "256M"
    image: str = "tiny"
    disks: tuple[PlannedDisk, ...] = ()
    network: str | None = None
    publish: tuple[str, ...] = ()
    host_ports: tuple[int, ...] = ()
    mac: str | None = None
    mtu: int | None = None
    net_rate: int | str | None = None
    kernel: str | None = None
    env: dict[str, str] = {}
    agent: bool = True
    allow_missing_walls: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workdir: str = "/"
    user: str | None = None
    on_hang: Literal["report", "kill"] = "report"
    processor: str = "auto"
    cpus: int = 1
    restore: str | None = None
    forked: bool = False

    def start(self, directory: Path, console: Sink) -> VM:
        """Starts the VM; raises what `VM` and `VM.restore` raise.

        Args:
            directory: where the layers of its disks are kept from one start to the next.
            console: takes the kernel's log.
        """
        from teuthis.images import store
        from teuthis.root.vm import VM

        if self.forked or self.restore is not None:
            return VM.restore(
                directory / ORIGIN if self.forked else Path(self.restore or ""),
                console=console,
                env=self.env,
                user=self.user,
                publish=not self.forked,
                allow_missing_walls=self.allow_missing_walls,
            )
        return VM(
            self.memory,
            image=self.image,
            keep=directory / "root.layer" if store.find(self.image).disk else None,
            disks=[
                disk.disk(directory / f"disk-{number}.layer")
                for number, disk in enumerate(self.disks, 1)
            ],
            network=self.network,
            publish=self.publish,
            host_ports=self.host_ports,
            mac=self.mac,
            mtu=self.mtu,
            net_rate=self.net_rate,
            kernel=self.kernel,
            env=self.env,
            user=self.user,
            agent=self.agent,
            allow_missing_walls=self.allow_missing_walls,
            console=console,
            on_hang=self.on_hang,
            processor=self.processor,
            cpus=self.cpus,
        )


def host_path(path: str | os.PathLike[str] | None) -> str | None:
    """A path of this host that means the same from every working directory."""
    return None if path is None else str(Path(path).absolute())
