"""Raw disks: the partition table, and which partition the root file system is on.

Only the table and the first KiB of each partition are looked at. File systems are for the guest to
mount; nothing here parses them further. References: UEFI 2.10, chapter 5 (GPT); the Discoverable
Partitions Specification; Linux `Documentation/filesystems/ext4/super.rst`.
"""

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import IO, Final

from teuthis.errors import ImageError

SECTOR: Final = 512
_MBR_ENTRIES: Final = 446
_MBR_MARK: Final = b"\x55\xaa"
_MBR_PROTECTIVE: Final = 0xEE
_MBR_EXTENDED: Final = (0x05, 0x0F, 0x85)
_GPT_MARK: Final = b"EFI PART"
_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ")
_GPT_ENTRY_SIZES: Final = (128, 256, 512)
_MAX_PARTITIONS: Final = 128
_ROOT_X86_64: Final = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
_SUPERBLOCK: Final = 1024
_EXT_MARK: Final = 0xEF53
_OTHERS: Final = {
    (0, b"QFI\xfb"): "a QCOW2 disk: convert it with `qemu-img convert -O raw`",
    (0, b"vhdxfile"): "a VHDX disk: convert it with `qemu-img convert -O raw`",
    (0, b"KDMV"): "a VMDK disk: convert it with `qemu-img convert -O raw`",
    (0, b"XFSB"): "an XFS file system; only ext4 is known here",
    (0, b"hsqs"): "a squashfs file system; only ext4 is known here",
    (65600, b"_BHRfS_M"): "a btrfs file system; only ext4 is known here",
}


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: its number as Linux counts, its place in bytes, whether it is typed as root."""

    number: int
    start: int
    size: int
    is_root: bool


def is_raw(file: IO[bytes]) -> bool:
    """Whether a file is an ext file system, or a disk with partitions.

    Raises:
        ImageError: it is a disk of a kind that is known, and not supported.
    """
    for (offset, mark), what in _OTHERS.items():
        file.seek(offset)
        if file.read(len(mark)) == mark:
            raise ImageError(f"this is {what}")
    return _ext_size(file, 0) is not None or _mark(file) == _MBR_MARK


def root_device(file: IO[bytes], size: int) -> str:
    """The root file system of a disk as a guest sees it: "sda", or "sda1" on a partition.

    Raises:
        ImageError: the table is damaged, or no partition, or more than one, can be the root.
    """
    whole = _ext_size(file, 0)
    if whole is not None:
        _check_ext(whole, size, "the file")
        return "sda"
    partitions = _partitions(file, size)
    found = [(part, length) for part in partitions if (length := _ext_size(file, part.start))]
    typed = [each for each in found if each[0].is_root]
    candidates = typed or found
    if len(candidates) != 1:
        names = ", ".join(f"sda{part.number}" for part, _ in candidates)
        raise ImageError(
            f"more than one partition can be the root: choose one with --root ({names})"
            if candidates
            else "no partition of this disk has an ext4 file system"
        )
    part, length = candidates[0]
    _check_ext(length, part.size, f"partition {part.number}")
    return f"sda{part.number}"


def _partitions(file: IO[bytes], size: int) -> list[Partition]:
    file.seek(_MBR_ENTRIES)
    table = file.read(64)
    if _mark(file) != _MBR_MARK or len(table) < 64:
        raise ImageError("this is neither a file system nor a disk with partitions")
    entries = [table[at : at + 16] for at in range(0, 64, 16)]
    if any(entry[4] == _MBR_PROTECTIVE for entry in entries):
        return _gpt(file, size)
    found = []
    for number, entry in enumerate(entries, 1):
        start, sectors = struct.unpack_from("<II", entry, 8)
        if entry[4] and entry[4] not in _MBR_EXTENDED:
            found.append(_partition(number, start, sectors, size, is_root=False))
    return found


def _gpt(file: IO[bytes], size: int) -> list[Partition]:
    file.seek(SECTOR)
    block = file.read(SECTOR)
    if len(block) < SECTOR or not block.startswith(_GPT_MARK):
        raise ImageError("the disk's partition table (GPT) is missing")
    (_, _, length, checksum, _, _, _, _, _, _, start, count, entry_size, entries_checksum) = (
        _GPT_HEADER.unpack_from(block)
    )
    if not _GPT_HEADER.size <= length <= SECTOR:
        raise ImageError("the disk's partition table (GPT) is damaged: its length")
    if zlib.crc32(block[:16] + bytes(4) + block[20:length]) != checksum:
        raise ImageError("the disk's partition table (GPT) is damaged: its checksum")
    if entry_size not in _GPT_ENTRY_SIZES or count > _MAX_PARTITIONS or start * SECTOR >= size:
        raise ImageError("the disk's partition table (GPT) is damaged: its entries")
    file.seek(start * SECTOR)
    entries = file.read(count * entry_size)
    if len(entries) < count * entry_size or zlib.crc32(entries) != entries_checksum:
        raise ImageError("the disk's partition table (GPT) is damaged: its entries' checksum")
    found = []
    for index in range(count):
        kind, _, first, last, _ = _GPT_ENTRY.unpack_from(entries, index * entry_size)
        if any(kind):
            is_root = uuid.UUID(bytes_le=kind) == _ROOT_X86_64
            found.append(_partition(index + 1, first, last - first + 1, size, is_root=is_root))
    return found


def _partition(number: int, start: int, sectors: int, size: int, *, is_root: bool) -> Partition:
    if start <= 0 or sectors <= 0 or (start + sectors) * SECTOR > size:
        raise ImageError(f"partition {number} reaches beyond the disk: is the file cut off?")
    return Partition(number, start * SECTOR, sectors * SECTOR, is_root)


def _mark(file: IO[bytes]) -> bytes:
    file.seek(SECTOR - 2)
    return file.read(2)


def _ext_size(file: IO[bytes], start: int) -> int | None:
    """The size of an ext file system in bytes; None if there is none."""
    file.seek(start + _SUPERBLOCK)
    block = file.read(1024)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _EXT_MARK:
        return None
    (low,) = struct.unpack_from("<I", block, 4)
    (shift,) = struct.unpack_from("<I", block, 0x18)
    (high,) = struct.unpack_from("<I", block, 0x150)
    if shift > 6:
        return None
    return int(low | high << 32) << (10 + int(shift))


def _check_ext(length: int, room: int, where: str) -> None:
    if not 0 < length <= room:
        raise ImageError(
            f"the file system has {length} bytes, {where} {room}: is the file cut off?"
        )
