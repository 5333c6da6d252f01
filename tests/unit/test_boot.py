"""What lies in guest memory when the first instruction runs."""

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from teuthis.errors import ConfigurationError, KernelError
from teuthis.root import generation, loader
from teuthis.root.loader import boot, layout

from .test_kernel_file import BODY, ENTRY, elf

MEBIBYTE = 1 << 20


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 128 * MEBIBYTE)
    yield fd
    os.close(fd)


def files(tmp_path: Path, initrd: bytes = b"initrd " * 1000) -> tuple[Path, Path]:
    (tmp_path / "vmlinux").write_bytes(elf())
    (tmp_path / "initrd").write_bytes(initrd)
    return tmp_path / "vmlinux", tmp_path / "initrd"


def test_everything_is_in_its_place(tmp_path: Path, memory: int) -> None:
    kernel, initrd = files(tmp_path)
    state = loader.load(memory, 128 * MEBIBYTE, kernel, initrd, "quiet answer=42")
    assert state.rip == ENTRY
    assert os.pread(memory, len(BODY), ENTRY) == BODY
    parameters = os.pread(memory, 4096, state.rsi)
    assert parameters[0x202:0x206] == b"HdrS"
    address, size = struct.unpack_from("<II", parameters, 0x218)
    assert os.pread(memory, size, address) == initrd.read_bytes()
    assert address % 4096 == 0
    assert address + size <= 128 * MEBIBYTE
    (text,) = struct.unpack_from("<I", parameters, 0x228)
    assert os.pread(memory, 16, text) == b"quiet answer=42\0"
    (rsdp,) = struct.unpack_from("<Q", parameters, 0x70)
    assert os.pread(memory, 8, rsdp) == b"RSD PTR "
    assert os.pread(memory, 16, generation.ADDRESS) != bytes(16)


def test_page_tables_map_the_first_4_gib_one_to_one(tmp_path: Path, memory: int) -> None:
    kernel, initrd = files(tmp_path)
    state = loader.load(memory, 128 * MEBIBYTE, kernel, initrd, "")

    def entry(table: int, index: int) -> int:
        value: int = struct.unpack("<Q", os.pread(memory, 8, table + 8 * index))[0]
        return value

    for address in (0, ENTRY, 0x1234_5678, 0xFFFF_FFFF):
        level4 = entry(state.cr3, address >> 39)
        level3 = entry(level4 & ~0xFFF, address >> 30 & 511)
        level2 = entry(level3 & ~0xFFF, address >> 21 & 511)
        assert level4 & level3 & level2 & 3 == 3
        assert level2 & 0x80
        assert (level2 & ~0x1FFFFF) + (address & 0x1FFFFF) == address


def test_segment_descriptors(tmp_path: Path, memory: int) -> None:
    kernel, initrd = files(tmp_path)
    state = loader.load(memory, 128 * MEBIBYTE, kernel, initrd, "")
    table = os.pread(memory, state.gdt_limit + 1, state.gdt_base)
    code, data = struct.unpack_from("<QQ", table, 16)
    assert code >> 53 & 1  # L: 64-bit code
    assert code >> 43 & 1  # executable
    assert not data >> 43 & 1
    assert code >> 47 & data >> 47 & 1  # present


def test_nothing_overlaps() -> None:
    tables = len(boot.page_tables(layout.PAGE_TABLES))
    parts = [
        (layout.GDT, layout.GDT + 4096),
        (layout.BOOT_PARAMS, layout.BOOT_PARAMS + 4096),
        (layout.COMMAND_LINE, layout.COMMAND_LINE + boot.MAX_COMMAND_LINE + 1),
        (layout.PAGE_TABLES, layout.PAGE_TABLES + tables),
        (layout.STACK - 0x1000, layout.STACK),
        (layout.LEGACY_HOLE, layout.ACPI_TABLES),
        (layout.ACPI_TABLES, layout.ACPI_TABLES + layout.ACPI_TABLES_SIZE),
        (generation.ADDRESS, generation.ADDRESS + layout.PAGE_SIZE),
    ]
    assert generation.ADDRESS % layout.PAGE_SIZE == 0
    for (_, end), (start, _) in itertools.pairwise(parts):
        assert end <= start


@pytest.mark.parametrize("size", [64 << 20, 3 << 30, (3 << 30) + (1 << 20), 8 << 30])
def test_memory_map_covers_exactly_the_ram(size: int) -> None:
    entries = boot.memory_map(size)
    ram = sum(length for _, length, kind in entries if kind == 1)
    assert ram == size - (layout.HIGH_RAM - layout.LEGACY_HOLE)
    for address, length, kind in entries:
        assert address + length <= layout.LOW_LIMIT or address >= layout.HIGH_BASE
        assert kind in (1, 2)


def test_initrd_too_large_for_the_memory(tmp_path: Path, memory: int) -> None:
    kernel, initrd = files(tmp_path)
    os.truncate(initrd, 100 * MEBIBYTE)
    with pytest.raises(ConfigurationError, match="give the VM 141 MiB or more"):
        loader.load(memory, 128 * MEBIBYTE, kernel, initrd, "")
    os.truncate(initrd, 4 << 30)
    with pytest.raises(ConfigurationError, match="too large"):
        loader.load(memory, 128 * MEBIBYTE, kernel, initrd, "")


def test_bad_arguments(tmp_path: Path, memory: int) -> None:
    kernel, initrd = files(tmp_path)
    with pytest.raises(ConfigurationError, match="command line"):
        loader.load(memory, 128 * MEBIBYTE, kernel, initrd, "x" * 2048)
    with pytest.raises(KernelError, match="initrd"):
        loader.load(memory, 128 * MEBIBYTE, kernel, tmp_path / "missing", "")


def test_command_line_with_and_without_console() -> None:
    assert loader.command_line().startswith("quiet ")
    verbose = loader.command_line(console=True, extra="debug")
    assert "quiet" not in verbose
    assert verbose.startswith("console=ttyS0")
    assert verbose.endswith(" debug")
