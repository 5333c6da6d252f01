"""What a virtual machine boots: the distribution's kernel and an initrd made around our agent."""

from pathlib import Path

import msgspec

from teuthis.images import initrd
from teuthis.images.kernel import GuestKernel, default_kernel
from teuthis.images.modules import TRANSPORT


class BootFiles(msgspec.Struct, frozen=True):
    """The two files that the loader puts into guest RAM."""

    kernel: Path
    initrd: Path


def boot_files(
    kernel: GuestKernel | None = None, drivers: tuple[str, ...] = TRANSPORT
) -> BootFiles:
    """Kernel and initrd for a VM, from the cache where they are in it.

    Args:
        kernel: the kernel to use; by default the distribution's cloud kernel, which is downloaded
            when it is not in the cache yet.
        drivers: the kernel's modules that the agent loads, with all that they need.

    Raises:
        KernelError: no kernel is to be had, or its modules do not fit together.
        HostError: a download failed.
        ConfigurationError: the guest agent is not built.
    """
    guest_kernel = kernel or default_kernel()
    return BootFiles(guest_kernel.file, initrd.build(guest_kernel, drivers))
