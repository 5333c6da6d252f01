"""What a virtual machine boots: the distribution's kernel and an initrd made around our agent."""

from dataclasses import dataclass
from pathlib import Path

from teuthis.images import initrd
from teuthis.images.kernel import GuestKernel, default_kernel, kernel_from_file

__all__ = ["BootFiles", "GuestKernel", "boot_files", "default_kernel", "kernel_from_file"]


@dataclass(frozen=True, slots=True)
class BootFiles:
    """The two files that the loader puts into guest RAM."""

    kernel: Path
    initrd: Path


def boot_files(kernel: Path | None = None) -> BootFiles:
    """Kernel and initrd for a VM, from the cache where they are in it.

    Args:
        kernel: a kernel file to use; by default the distribution's cloud kernel, which is
            downloaded when it is not in the cache yet.

    Raises:
        KernelError: no kernel is to be had, or its modules do not fit together.
        HostError: a download failed.
        ConfigurationError: the guest agent is not built.
    """
    guest_kernel = kernel_from_file(kernel) if kernel else default_kernel()
    return BootFiles(guest_kernel.file, initrd.build(guest_kernel))
