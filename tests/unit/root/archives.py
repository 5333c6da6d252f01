"""Tar archives byte by byte, honest and not."""

from teuthis.root.tar import BLOCK

END = bytes(2 * BLOCK)


def header(
    name: bytes = b"top",
    kind: bytes = b"0",
    size: int = 0,
    *,
    mode: int = 0o644,
    target: bytes = b"",
    magic: bytes = b"ustar  \0",
    mtime: int = 1,
    prefix: bytes = b"",
) -> bytes:
    fields = (
        name.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"0000000\0" * 2,
        b"%011o\0" % size if 0 <= size < 1 << 33 else _base_256(size),
        b"%011o\0" % mtime,
        b" " * 8,
        kind,
        target.ljust(100, b"\0"),
        magic,
        bytes(64 + 16),
        prefix.ljust(155, b"\0"),
    )
    block = b"".join(fields).ljust(BLOCK, b"\0")
    assert len(block) == BLOCK
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _base_256(number: int) -> bytes:
    return b"\x80" + number.to_bytes(11) if number >= 0 else number.to_bytes(12, signed=True)


def member(name: bytes, content: bytes = b"", kind: bytes = b"0", **fields: object) -> bytes:
    """A header with its content, and with its long name when it needs one."""
    before = b""
    if len(name) > 100:
        before = header(b"././@LongLink", b"L", len(name) + 1) + padded(name + b"\0")
        name = name[:100]
    return before + header(name, kind, len(content), **fields) + padded(content)  # type: ignore[arg-type]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)
