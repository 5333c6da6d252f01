import io
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.root.archives import END, header, member, padded

from teuthis.root.tar import BLOCK, MAX_PATH, ArchiveError, Kind, Member, Reader, Truncated

LIMIT = 1 << 20


def read(archive: bytes, limit: int = LIMIT) -> list[tuple[Member, bytes]]:
    reader = Reader(io.BytesIO(archive), limit)
    return [(each, b"".join(reader.content())) for each in reader.members()]


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=ustar"], []])
def test_what_tar_writes_is_read(tmp_path: Path, options: list[str]) -> None:
    top = tmp_path / "top"
    deep = top / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    (top / "file").write_bytes(b"x" * 1000)
    (top / "file").chmod(0o4750)
    (top / "link").symlink_to("file")
    (top / "hard").hardlink_to(top / "file")
    (deep / "f").write_bytes(b"deep")
    (top / "with\nnewline and \x1b").touch()
    done = subprocess.run(
        ["tar", "-c", *options, "-f", "-", "-C", tmp_path, "top"], capture_output=True, check=True
    )
    found = {b"/".join(each.path): (each, content) for each, content in read(done.stdout)}
    file, hard = found[b"top/file"], found[b"top/hard"]
    if file[0].kind is Kind.HARD_LINK:  # whichever comes first
        file, hard = hard, file
    assert (file[0].kind, file[0].mode, file[1]) == (Kind.FILE, 0o750, b"x" * 1000)
    assert (hard[0].kind, hard[0].size) == (Kind.HARD_LINK, 0)
    assert found[b"top/link"][0].target == b"file"
    assert found[b"top"][0].kind is Kind.DIRECTORY
    assert found[b"top/" + b"d" * 90 + b"/" + b"e" * 90 + b"/f"][1] == b"deep"
    assert b"top/with\nnewline and \x1b" in found


def test_content_that_nobody_reads_is_passed_over() -> None:
    archive = member(b"top", b"x" * 700) + member(b"next", b"y") + END
    assert [each.path for each in Reader(io.BytesIO(archive), LIMIT).members()] == [
        (b"top",),
        (b"next",),
    ]


def test_what_follows_the_end_is_not_read() -> None:
    assert len(read(member(b"top") + END + b"garbage" * 1000)) == 1


def test_what_follows_the_end_is_bounded() -> None:
    archive = member(b"top") + END
    reader = Reader(io.BytesIO(archive + bytes(LIMIT - len(archive))), LIMIT)
    list(reader.members())
    reader.finish()
    assert reader.taken == LIMIT
    reader = Reader(io.BytesIO(archive + bytes(LIMIT)), LIMIT)
    list(reader.members())
    with pytest.raises(ArchiveError, match="larger"):
        reader.finish()
    assert reader.too_large


@pytest.mark.parametrize(
    "block",
    [
        b"\1" * BLOCK,
        header()[:-1] + b"\1",
        header(magic=b"ustar\0" + b"00").replace(b"ustar", b"rater"),
        header(magic=b"tar    \0"),
        header(b"top", b"x", 100) + padded(b"11 path=abc\n"),
        header(b"top", b"g"),
        header(b"top", b"S", 1 << 40),
        header(b"top", b"5", 3) + padded(b"abc"),
        header(b"top", b"2", 1, target=b"x"),
        header(b"././@LongLink", b"L", 0),
        header(b"././@LongLink", b"L", MAX_PATH + 1) + bytes(9 * BLOCK),
        (header(b"././@LongLink", b"L", 1) + padded(b"a")) * 2,
    ],
)
def test_a_damaged_header_is_refused(block: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(block + member(b"top") + END)


@pytest.mark.parametrize("at", [124, 136, 100])
@pytest.mark.parametrize("field", [b"8888888\0", b"-000001\0", b"0x00012\0"])
def test_numbers_that_are_none(at: int, field: bytes) -> None:
    block = bytearray(header())
    block[at : at + 8] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(ArchiveError):
        read(bytes(block) + END)


@pytest.mark.parametrize(
    "name",
    [
        b"/etc/passwd",
        b"..",
        b"top/../../x",
        b"../x",
        b"",
        b".",
        b"/",
        b"a/" * 65 + b"a",
        b"x" * 256,
        b"a\0b" + b"x" * 100,
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(member(name) + END)
    with pytest.raises(ArchiveError):
        read(header(b"x", magic=b"ustar\x0000", prefix=b"..") + END)


def test_an_archive_is_no_larger_than_allowed() -> None:
    archive = member(b"top", bytes(10_000)) + END
    assert read(archive, len(archive))
    reader = Reader(io.BytesIO(archive), 5000)
    with pytest.raises(ArchiveError, match="larger"):
        list(reader.members())
    assert reader.too_large
    # A size that is not there, and is not believed before it is: nothing is reserved for it.
    with pytest.raises(ArchiveError, match="larger"):
        read(header(b"top", size=1 << 70) + bytes(LIMIT))
    with pytest.raises(ArchiveError, match="negative"):
        read(header(b"top", size=-512) + END)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 1024, 1500])
def test_an_archive_that_ends_in_the_middle(length: int) -> None:
    archive = member(b"top", b"x" * 700)
    with pytest.raises(Truncated):
        read(archive[:length])


@given(st.binary(max_size=3000))
def test_any_bytes_are_an_archive_or_refused(archive: bytes) -> None:
    with suppress(ArchiveError):
        read(archive)
