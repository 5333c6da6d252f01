"""The Linux 64-bit boot protocol: boot parameters, memory map, page tables, entry state.

Reference: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`. The kernel is entered at the
64-bit entry of its ELF image, with the first 4 GiB mapped one to one.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from teuthis.errors import ConfigurationError, KernelError
from teuthis.root import generation
from teuthis.root.loader import acpi, layout
from teuthis.root.loader.kernel import HOST_IS_SHORT, Kernel, open_kernel
from teuthis.root.processor import Processor

MAX_COMMAND_LINE = 2047
"""What the kernel keeps of its command line, in bytes."""

_QUIET = "quiet"
_CONSOLE = "console=ttyS0 earlyprintk=ttyS0"
# No driver of ours makes a terminal of the serial port: the kernel's own early output goes there.
_CONSOLE_OF_AN_INIT = "earlyprintk=ttyS0,keep console=tty0 loglevel=7 systemd.log_target=kmsg"
_OPTIONS = (
    # Two thirds of a boot are self-tests of the kernel's crypto modules.
    "cryptomgr.notests",
    # Half of what remains prepares tools that trace the kernel: its event files, and a search for
    # functions that cannot be traced, which the kernel repeats when somebody asks.
    "initcall_blacklist=trace_eval_init,tracer_init_tracefs,ftrace_check_for_weak_functions",
    # There is no PCI bus and no serial port with an interrupt: do not search for them.
    "pci=off 8250.nr_uarts=0",
    # A panic ends the VM at once, by the reset register.
    "panic=-1 reboot=acpi",
    # A guest that has nothing to do sleeps. Its kernel does not look for memory to compact before
    # anybody wants a large piece, nor for a stuck processor, nor average how long tasks wait.
    "sysctl.vm.compaction_proactiveness=0 nowatchdog psi=0",
)
_OPTIONS_OF: Final[dict[Processor, str]] = {
    # An interpreter does not speculate on the guest's branches.
    "soft": "mitigations=off",
    "kvm": "",
}

_ENTRY_RAM = 1
_ENTRY_RESERVED = 2
_PAGE_PRESENT_WRITABLE = 0b11
_PAGE_LARGE = 1 << 7
_LARGE_PAGE_SIZE = 2 << 20
# Descriptors that the boot protocol wants: flat 64-bit code at 0x10, flat data at 0x18.
_GDT = struct.pack("<QQQQ", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
_WORKING_MEMORY = 24 << 20
"""What a kernel needs beside its own image and the initrd to come up at all, in bytes."""


@dataclass(frozen=True, slots=True)
class BootState:
    """Registers at the first guest instruction: long mode, paging on, interrupts off."""

    rip: int
    rsi: int
    rsp: int
    cr3: int
    gdt_base: int
    gdt_limit: int

    def options(self) -> dict[str, int]:
        """As the hypervisor program takes them."""
        return {
            "--rip": self.rip,
            "--rsi": self.rsi,
            "--rsp": self.rsp,
            "--cr3": self.cr3,
            "--gdt-base": self.gdt_base,
            "--gdt-limit": self.gdt_limit,
        }


def command_line(
    *,
    console: bool = False,
    processor: Processor = "soft",
    agent: bool = True,
    extra: str = "",
) -> str:
    """The kernel's command line; with `console` its log goes to the serial port.

    Without `agent` another init than ours starts, which wants a console that it can open.
    """
    log = _CONSOLE if agent else _CONSOLE_OF_AN_INIT
    return " ".join(
        filter(None, (log if console else _QUIET, *_OPTIONS, _OPTIONS_OF[processor], extra))
    )


def load(
    memory_fd: int,
    memory_size: int,
    kernel: Path,
    initrd: Path,
    arguments: str,
    *,
    processors: int = 1,
) -> BootState:
    """Writes everything that the guest boots with into its RAM, the memory file `memory_fd`.

    Args:
        memory_fd: the memory file, `memory_size` bytes long and still all zeros.
        memory_size: RAM in bytes, a multiple of the page size.
        kernel: a `vmlinuz` or `vmlinux`.
        initrd: a cpio archive, compressed or not.
        arguments: the kernel's command line.
        processors: how many the guest has.

    Raises:
        KernelError: kernel or initrd cannot be used.
        ConfigurationError: they do not fit into the memory, or the command line is too long.
    """
    image = open_kernel(kernel)
    text = arguments.encode()
    if len(text) > MAX_COMMAND_LINE or b"\0" in text:
        raise ConfigurationError(
            f"the kernel command line of {len(text)} bytes is too long or malformed: "
            f"at most {MAX_COMMAND_LINE} bytes are possible"
        )
    try:
        initrd_file = os.open(initrd, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in HOST_IS_SHORT:
            raise
        raise KernelError(f"the initrd {initrd} cannot be read: {error.strerror}") from error
    try:
        initrd_size = os.fstat(initrd_file).st_size
        initrd_address = _place_initrd(image, initrd_size, memory_size)
        _copy_file(memory_fd, initrd_address, initrd_file, initrd_size)
    finally:
        os.close(initrd_file)

    data = memoryview(image.data)
    for segment in image.segments:
        content = data[segment.offset : segment.offset + segment.file_size]
        _write(memory_fd, segment.address, content)
    parameters = boot_params(memory_size, initrd_address, initrd_size)
    _write(memory_fd, layout.BOOT_PARAMS, parameters)
    _write(memory_fd, layout.COMMAND_LINE, text)
    _write(memory_fd, layout.GDT, _GDT)
    _write(memory_fd, layout.PAGE_TABLES, page_tables(layout.PAGE_TABLES))
    _write(memory_fd, layout.ACPI_TABLES, acpi.build(layout.ACPI_TABLES, processors))
    generation.give(memory_fd)
    return BootState(
        rip=image.entry,
        rsi=layout.BOOT_PARAMS,
        rsp=layout.STACK,
        cr3=layout.PAGE_TABLES,
        gdt_base=layout.GDT,
        gdt_limit=len(_GDT) - 1,
    )


def memory_map(memory_size: int) -> list[tuple[int, int, int]]:
    """The E820 map: (address, size, type) with the legacy hole and the one below 4 GiB."""
    low = min(memory_size, layout.LOW_LIMIT)
    entries = [
        (0, layout.LEGACY_HOLE, _ENTRY_RAM),
        (layout.LEGACY_HOLE, layout.HIGH_RAM - layout.LEGACY_HOLE, _ENTRY_RESERVED),
        (layout.HIGH_RAM, low - layout.HIGH_RAM, _ENTRY_RAM),
    ]
    if memory_size > layout.LOW_LIMIT:
        entries.append((layout.HIGH_BASE, memory_size - layout.LOW_LIMIT, _ENTRY_RAM))
    return entries


def boot_params(memory_size: int, initrd_address: int, initrd_size: int) -> bytes:
    """The 4096-byte `struct boot_params`, written as if a boot loader had filled it in."""
    page = bytearray(layout.PAGE_SIZE)
    entries = memory_map(memory_size)
    struct.pack_into("<Q", page, 0x70, layout.ACPI_TABLES)  # acpi_rsdp_addr
    struct.pack_into("<B", page, 0x1E8, len(entries))  # e820_entries
    struct.pack_into("<H", page, 0x1FE, 0xAA55)  # boot_flag
    struct.pack_into("<4sH", page, 0x202, b"HdrS", 0x20F)  # header, version 2.15
    struct.pack_into("<BB", page, 0x210, 0xFF, 1)  # type_of_loader, loadflags: loaded high
    struct.pack_into("<II", page, 0x218, initrd_address, initrd_size)  # ramdisk
    struct.pack_into("<I", page, 0x228, layout.COMMAND_LINE)  # cmd_line_ptr
    for index, (address, size, kind) in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, address, size, kind)
    return bytes(page)


def page_tables(base: int) -> bytes:
    """Maps the first 4 GiB one to one with 2 MiB pages; the root lies at `base`."""
    table = layout.PAGE_SIZE
    root = struct.pack("<Q", base + table | _PAGE_PRESENT_WRITABLE)
    pointers = struct.pack(
        "<4Q", *(base + (2 + index) * table | _PAGE_PRESENT_WRITABLE for index in range(4))
    )
    directories = struct.pack(
        "<2048Q",
        *(page * _LARGE_PAGE_SIZE | _PAGE_LARGE | _PAGE_PRESENT_WRITABLE for page in range(2048)),
    )
    return root.ljust(table, b"\0") + pointers.ljust(table, b"\0") + directories


def _place_initrd(kernel: Kernel, initrd_size: int, memory_size: int) -> int:
    """The address of the initrd: as high as low RAM allows.

    Raises:
        ConfigurationError: kernel and initrd do not fit.
    """
    top = min(memory_size, layout.LOW_LIMIT)
    address = (top - initrd_size) & ~(layout.PAGE_SIZE - 1)
    needed = kernel.end + _WORKING_MEMORY
    if address < needed:
        mebibyte = 1 << 20
        least = -(-(needed + initrd_size) // mebibyte)
        raise ConfigurationError(
            f"{memory_size // mebibyte} MiB of memory do not hold this kernel and an initrd of "
            f"{-(-initrd_size // mebibyte)} MiB: give the VM {least} MiB or more"
            if least * mebibyte <= layout.LOW_LIMIT
            else f"the initrd of {-(-initrd_size // mebibyte)} MiB is too large: it must fit, "
            f"with the kernel, into the first {layout.LOW_LIMIT // mebibyte} MiB of memory"
        )
    return address


def _copy_file(memory_fd: int, address: int, file: int, size: int) -> None:
    os.lseek(memory_fd, address, os.SEEK_SET)
    sent = 0
    while sent < size:
        count = os.sendfile(memory_fd, file, sent, size - sent)
        if count == 0:
            raise KernelError("the initrd became shorter while it was read: try again")
        sent += count


def _write(memory_fd: int, address: int, content: bytes | memoryview) -> None:
    """Writes all of `content` at a guest physical address below the low limit."""
    view = memoryview(content)
    while view:
        count = os.pwrite(memory_fd, view, address)
        view, address = view[count:], address + count
