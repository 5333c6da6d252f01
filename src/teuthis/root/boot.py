"""What a VM boots of an image: its kernel, its drivers, its root disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from teuthis.errors import ConfigurationError
from teuthis.images.store import Image
from teuthis.root.processor import Processor

_FAULT_AROUND = 16384
"""Bytes of a file that a guest's kernel maps when a program touches a page of it.

By itself it maps 64 KiB, as an exception is dear on a processor of silicon. On ours a page costs as
much to map and to unmap as a third of an exception, and most pages around are never touched.
"""

if TYPE_CHECKING:
    from teuthis.root.disks import Disk
    from teuthis.root.launch import Load
    from teuthis.root.loader import BootState


def load(
    image: Image,
    processor: Processor,
    kernel: Path | None = None,
    *,
    disks: int,
    drivers: tuple[str, ...],
    agent: bool = True,
    console: bool = False,
    cpus: int = 1,
) -> Load:
    """What puts an image's kernel, and what it is told, into the memory of a VM."""
    from teuthis.images.boot import BootFiles, boot_files
    from teuthis.images.kernel import GuestKernel, kernel_from_file
    from teuthis.root import loader

    if image.initrd is not None:
        files = BootFiles(kernel or image.kernel, image.initrd)
    else:
        chosen = kernel_from_file(kernel) if kernel else GuestKernel(image.kernel, image.modules)
        files = boot_files(chosen, drivers)
    parameters = [f"root=/dev/{image.root} rw"]
    if agent:
        parameters = [f"teuthis.disks={disks}"] if disks else []
        parameters += [f"teuthis.fault-around={_FAULT_AROUND}"] if processor == "soft" else []
        parameters += [f"teuthis.root={image.root}"] if image.root else []

    # It must not hold the VM's object: a VM that nobody refers to any more is closed.
    def put(descriptor: int, size: int, extra: str) -> BootState:
        arguments = loader.command_line(
            console=console,
            processor=processor,
            agent=agent,
            extra=" ".join([*parameters, extra]).strip(),
        )
        return loader.load(descriptor, size, files.kernel, files.initrd, arguments, processors=cpus)

    return put


def drivers(image: Image, *, disks: bool, network: bool) -> tuple[str, ...]:
    """Modules of the kernel that a guest with such devices needs."""
    from teuthis.images import modules

    storage = modules.ROOT if image.root else modules.STORAGE if disks else ()
    return modules.TRANSPORT + storage + (modules.NETWORK if network else ())


def root_disk(image: Image, keep: str | os.PathLike[str] | None) -> list[Disk]:
    """The disk that is the guest's root, if the image has one; `keep` takes what is written.

    Raises:
        ConfigurationError: there is nothing to keep.
    """
    if image.disk is not None:
        from teuthis.root.disks import Disk

        return [Disk(image.disk, copy_on_write=True, layer=keep)]
    if keep is not None:
        raise ConfigurationError(f"the image {image.name!r} has no disk of which to keep a layer")
    return []


def check_agent(image: Image, agent: bool) -> None:
    """Raises `ConfigurationError` for an image that does not boot with, or without, our agent."""
    if agent and image.initrd is not None:
        raise ConfigurationError(
            f"the image {image.name!r} boots by itself, without our agent, so no program can be "
            "run in it from here: say agent=False (`teuthis start --no-agent`)"
        )
    if not agent and image.initrd is None:
        raise ConfigurationError(
            f"the image {image.name!r} boots with our agent only: without one use an image that "
            "boots by itself, such as debian-stock"
        )
