"""Raw disks: which partition is the root, and tables that lie."""

import io
import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from teuthis.errors import ImageError
from teuthis.images import disk

_SIZE = 8 << 20
_ROOT = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709").bytes_le
_LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le


def ext(size: int) -> bytes:
    """The first 2 KiB of an ext file system."""
    block = bytearray(2048)
    struct.pack_into("<I", block, 1024 + 4, size >> 10)
    struct.pack_into("<H", block, 1024 + 0x38, 0xEF53)
    return bytes(block)


def put(data: bytearray, offset: int, what: bytes) -> None:
    data[offset : offset + len(what)] = what


def mbr(*entries: tuple[int, int, int, int]) -> bytearray:
    """A disk with these partitions: (slot, type, first sector, sectors)."""
    data = bytearray(_SIZE)
    for slot, kind, start, sectors in entries:
        put(data, 446 + 16 * slot, struct.pack("<4xB3xII", kind, start, sectors))
    put(data, 510, b"\x55\xaa")
    return data


def gpt(*entries: tuple[bytes, int, int], count: int = 128, entry_size: int = 128) -> bytearray:
    """A disk with these partitions: (type, first sector, last sector)."""
    data = mbr((0, 0xEE, 1, _SIZE // 512 - 1))
    table = b"".join(
        struct.pack("<16s16sQQQ", kind, b"u" * 16, first, last, 0).ljust(entry_size, b"\0")
        for kind, first, last in entries
    ).ljust(min(count, 128) * entry_size, b"\0")
    fields = [1, _SIZE // 512 - 1, 34, _SIZE // 512 - 34, b"d" * 16, 2, count, entry_size]
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 65536, 92, 0, 0, *fields, zlib.crc32(table)
    )
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    put(data, 512, header)
    put(data, 1024, table)
    return data


def root(data: bytes | bytearray) -> str:
    return disk.root_device(io.BytesIO(data), len(data))


def test_a_file_system_without_partitions() -> None:
    data = bytearray(_SIZE)
    put(data, 0, ext(_SIZE))
    assert disk.is_raw(io.BytesIO(data))
    assert root(data) == "sda"
    with pytest.raises(ImageError, match="cut off"):
        root(data[: _SIZE // 2])


def test_the_partition_with_a_file_system() -> None:
    data = mbr((0, 0x0C, 64, 64), (2, 0x83, 2048, 4096))
    put(data, 2048 * 512, ext(4096 * 512))
    assert disk.is_raw(io.BytesIO(data))
    assert root(data) == "sda3"


def test_gpt_prefers_the_partition_typed_as_root() -> None:
    data = gpt((_ESP, 64, 127), (_LINUX, 2048, 4095), (_ROOT, 4096, 8191))
    put(data, 2048 * 512, ext(1 << 20))
    put(data, 4096 * 512, ext(1 << 20))
    assert root(data) == "sda3"


def test_partitions_as_sfdisk_makes_them(tmp_path: Path) -> None:
    sfdisk = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin")
    if not sfdisk:
        pytest.skip("needs sfdisk")
    path = tmp_path / "disk"
    for label in ("dos", "gpt"):
        path.write_bytes(bytes(_SIZE))
        script = f"label: {label}\nsize=1MiB\nsize=4MiB\n"
        subprocess.run([sfdisk, "-q", str(path)], input=script, text=True, check=True)
        data = bytearray(path.read_bytes())
        put(data, 2 << 20, ext(4 << 20))
        assert root(data) == "sda2"


def no_partition() -> bytes:
    return bytes(mbr())


def two_candidates() -> bytes:
    data = gpt((_LINUX, 2048, 4095), (_LINUX, 4096, 8191))
    put(data, 2048 * 512, ext(1 << 20))
    put(data, 4096 * 512, ext(1 << 20))
    return bytes(data)


def beyond(start: int, sectors: int) -> Callable[[], bytes]:
    return lambda: bytes(mbr((0, 0x83, start, sectors)))


def larger_file_system() -> bytes:
    data = mbr((0, 0x83, 2048, 2048))
    put(data, 2048 * 512, ext(1 << 22))
    return bytes(data)


def flipped(offset: int) -> Callable[[], bytes]:
    def make() -> bytes:
        data = gpt((_ROOT, 4096, 8191))
        put(data, 4096 * 512, ext(1 << 20))
        assert root(data) == "sda1"
        data[offset] ^= 1
        return bytes(data)

    return make


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no-partition": no_partition,
    "two-candidates": two_candidates,
    "beyond-the-disk": beyond(2048, 1 << 31),
    "starts-beyond": beyond((1 << 32) - 1, (1 << 32) - 1),
    "starts-at-nothing": beyond(0, 64),
    "no-sectors": beyond(64, 0),
    "larger-file-system": larger_file_system,
    "gpt-mark": flipped(512),
    "gpt-checksum": flipped(512 + 16),
    "gpt-length": flipped(512 + 12),
    "gpt-entry": flipped(1024 + 40),
    "gpt-backwards": lambda: bytes(gpt((_ROOT, 8191, 4096))),
    "gpt-beyond": lambda: bytes(gpt((_ROOT, 4096, (1 << 64) - 1))),
    "gpt-many": lambda: bytes(gpt(count=1 << 31)),
    "gpt-entry-size": lambda: bytes(gpt(entry_size=64)),
    "cut-off": lambda: bytes(gpt((_ROOT, 4096, 8191))[:1500]),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_tables_that_lie(kind: str) -> None:
    with pytest.raises(ImageError):
        root(HOSTILE[kind]())


@pytest.mark.parametrize("mark", [b"QFI\xfb", b"vhdxfile", b"KDMV", b"XFSB"])
def test_disks_of_another_kind(mark: bytes) -> None:
    with pytest.raises(ImageError, match=r"convert|only ext4"):
        disk.is_raw(io.BytesIO(mark.ljust(4096, b"\0")))
