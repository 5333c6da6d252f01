"""Takes the kernel out of a `vmlinuz` (bzImage) or reads an ELF `vmlinux`.

References: Linux `Documentation/arch/x86/boot.rst` (setup header), the ELF-64 object file format.
The input is the user's own file, yet it may be anything: every length is checked before use.
"""

import errno
import hashlib
import lzma
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import zstandard

from teuthis.errors import KernelError
from teuthis.images import cache
from teuthis.root.loader.layout import HIGH_RAM, LOW_LIMIT

MAX_FILE = 1 << 30
"""Largest kernel file and largest unpacked kernel, in bytes (debug kernels are a few 100 MiB)."""

_KEPT = 4
"""Unpacked kernels that stay in the cache, some 50 MB each."""
_SETUP_HEADER = 0x1F1
_BOOT_FLAG = 0xAA55
_OLDEST_PROTOCOL = 0x208
"""Boot protocol 2.08 (Linux 2.6.26) brought `payload_offset` and `payload_length`."""
_LZ4_BLOCK = 8 << 20
"""Uncompressed size of a block in LZ4's legacy format."""
_MAX_PROGRAM_HEADERS = 64
_EM_X86_64 = 62
_PT_LOAD = 1


HOST_IS_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of opening a file that are not the file's."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes `offset` to `offset + file_size` of the ELF file go to guest physical `address`."""

    address: int
    memory_size: int
    offset: int
    file_size: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """An ELF kernel, mapped from a file; all addresses are guest physical."""

    data: bytes | mmap.mmap
    entry: int
    segments: tuple[Segment, ...]

    @property
    def end(self) -> int:
        """First address behind the kernel, its zeroed memory included."""
        return max(segment.address + segment.memory_size for segment in self.segments)


def open_kernel(path: Path) -> Kernel:
    """Opens a kernel file; a compressed one is unpacked once and cached.

    Raises:
        KernelError: the file cannot be read or is no usable x86-64 Linux kernel.
    """
    packed = _map(path)
    if packed[:4] == b"\x7fELF":
        return parse_elf(packed, path)
    unpacked = cache.directory("unpacked") / f"{hashlib.sha256(packed).hexdigest()}.elf"
    if not unpacked.exists():
        content = decompress(payload(packed, path), path)
        with cache.new_file(unpacked) as file:
            file.write(content)
    return parse_elf(_map(cache.used(unpacked, keep=_KEPT)), path)


def payload(image: bytes | mmap.mmap, path: Path) -> bytes:
    """The compressed ELF kernel inside a bzImage.

    Raises:
        KernelError: no bzImage, or a truncated one.
    """
    if len(image) < 0x260 or image[0x202:0x206] != b"HdrS":
        raise _unusable(path, "it is neither a Linux bzImage nor an ELF file")
    (setup_sectors,) = struct.unpack_from("<B", image, _SETUP_HEADER)
    (boot_flag,) = struct.unpack_from("<H", image, 0x1FE)
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if boot_flag != _BOOT_FLAG:
        raise _unusable(path, "its boot signature is wrong")
    if protocol < _OLDEST_PROTOCOL:
        raise _unusable(path, f"its boot protocol {protocol >> 8}.{protocol & 255:02} is too old")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((setup_sectors or 4) + 1) * 512 + offset
    if start + length > len(image):
        raise _unusable(path, f"it is truncated: {len(image)} of {start + length} bytes are there")
    if length < 8:
        raise _unusable(path, "it carries no compressed kernel")
    return bytes(image[start : start + length])


def decompress(data: bytes, path: Path) -> bytes:
    """Unpacks a bzImage's payload, whose last 4 bytes are the size of the result.

    Raises:
        KernelError: unknown compression, damaged data, or an unreasonable size.
    """
    known = next((entry for entry in _COMPRESSIONS if data.startswith(entry[0])), None)
    if known is None:
        raise _unusable(path, f"its compression is unknown (it starts with {data[:4].hex()})")
    _, name, unpack = known
    if unpack is None:
        raise _unusable(path, f"it is compressed with {name}; xz, lz4, zstd and gzip are supported")
    (size,) = struct.unpack_from("<I", data, len(data) - 4)
    if size > MAX_FILE:
        raise _unusable(path, f"it claims to unpack to {size} bytes")
    try:
        content = unpack(data, size)
    except _DAMAGE as error:
        raise _unusable(path, f"its {name} data is damaged ({error})") from error
    if len(content) != size:
        raise _unusable(path, f"its {name} data is damaged (not the {size} bytes it announces)")
    return content


def parse_elf(data: bytes | mmap.mmap, path: Path) -> Kernel:
    """Reads the ELF header and the loadable segments.

    Raises:
        KernelError: not a static x86-64 ELF kernel, or a truncated one.
    """
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01":
        raise _unusable(path, "it holds no 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    entry, table = struct.unpack_from("<QQ", data, 24)
    entry_size, count = struct.unpack_from("<HH", data, 54)
    if machine != _EM_X86_64 or kind != 2:
        raise _unusable(path, "it is not an executable for x86-64")
    if entry_size != 56 or not 0 < count <= _MAX_PROGRAM_HEADERS:
        raise _unusable(path, "its ELF program headers are malformed")
    if table + count * entry_size > len(data):
        raise _unusable(path, "it is truncated: the ELF program headers are missing")
    segments = []
    for index in range(count):
        kind, _, offset, _, address, file_size, memory_size, _ = struct.unpack_from(
            "<IIQQQQQQ", data, table + index * entry_size
        )
        if kind != _PT_LOAD or memory_size == 0:
            continue
        if file_size > memory_size or address < HIGH_RAM or address + memory_size > LOW_LIMIT:
            raise _unusable(path, f"its segment at {address:#x} does not fit into guest memory")
        if offset + file_size > len(data):
            raise _unusable(path, f"it is truncated: its segment at {address:#x} is incomplete")
        segments.append(Segment(address, memory_size, offset, file_size))
    if not any(s.address <= entry < s.address + s.file_size for s in segments):
        raise _unusable(path, f"its entry point {entry:#x} lies in none of its segments")
    return Kernel(data, entry, tuple(segments))


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise _unusable(path, "it is empty")
            if size > MAX_FILE:
                raise _unusable(path, f"its {size} bytes are too many")
            return mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in HOST_IS_SHORT:
            raise  # nothing is wrong with the file
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise KernelError(
            f"the kernel {path} cannot be read ({reason}): name a readable file"
        ) from error


def _unusable(path: Path, why: str) -> KernelError:
    return KernelError(
        f"{path} cannot be used as a kernel: {why}. "
        "Use a vmlinuz or vmlinux of an x86-64 Linux distribution, or leave --kernel out"
    )


def _lz4(data: bytes, size: int) -> bytes:
    """LZ4's legacy frame: a magic number, then blocks, each behind its 32-bit length."""
    blocks = []
    at, end, left = 4, len(data) - 4, size
    while at < end and left >= 0:
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length > end - at:
            raise ValueError("a block reaches beyond the end")
        block = lz4.block.decompress(data[at : at + length], uncompressed_size=_LZ4_BLOCK)
        at += length
        left -= len(block)
        blocks.append(block)
    return b"".join(blocks)


def _zstd(data: bytes, size: int) -> bytes:
    window = 1 << 27  # what `zstd --ultra -22` needs
    with zstandard.ZstdDecompressor(max_window_size=window).stream_reader(data[:-4]) as reader:
        return reader.read(size + 1)


def _xz(data: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, size + 1)


def _gzip(data: bytes, size: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, size + 1)


_DAMAGE = (
    ValueError,
    EOFError,
    struct.error,
    lz4.block.LZ4BlockError,
    lzma.LZMAError,
    zlib.error,
    zstandard.ZstdError,
)
_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[bytes, int], bytes] | None], ...] = (
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", None),
    (b"\x5d\x00\x00", "lzma", None),
    (b"\x89LZO", "lzo", None),
)
