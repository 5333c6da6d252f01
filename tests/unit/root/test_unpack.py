import io
import os
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.root.archives import END, member

from teuthis.root.tar import ArchiveError, Reader
from teuthis.root.unpack import Unpacker


def unpack(archive: bytes, into: Path, name: bytes = b"copy") -> list[bytes]:
    """Returns the names of what was left out."""
    left_out: list[bytes] = []
    directory = os.open(into, os.O_RDONLY)
    try:
        unpacker = Unpacker(directory, name, lambda each: left_out.append(b"/".join(each.path)))
        unpacker.run(Reader(io.BytesIO(archive), 1 << 20))
    finally:
        os.close(directory)
    return left_out


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """The directory for the copy; beside it is what an attacker is after."""
    (tmp_path / "secret").write_text("untouched")
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def test_a_tree(into: Path) -> None:
    archive = (
        member(b"top", kind=b"5", mode=0o550, mtime=5)
        + member(b"top/sub", kind=b"5", mode=0o755)
        + member(b"top/sub/f", b"content", mode=0o7755, mtime=1000)
        + member(b"top/hard", kind=b"1", target=b"top/sub/f")
        + member(b"top/sub/up", kind=b"2", target=b"../hard")
        + member(b"top/down", kind=b"2", target=b"sub/f")
        + END
    )
    before = os.umask(0o022)
    try:
        assert unpack(archive, into) == []
    finally:
        os.umask(before)
    copy = into / "copy"
    assert (copy / "sub/f").read_bytes() == (copy / "hard").read_bytes() == b"content"
    assert (copy / "sub/up").resolve() == copy / "hard"
    assert (copy / "down").readlink() == Path("sub/f")
    status = (copy / "sub/f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 1000)
    assert (stat.S_IMODE(copy.stat().st_mode), copy.stat().st_mtime) == (0o550, 5)
    copy.chmod(0o700)


def test_a_single_file_under_another_name(into: Path) -> None:
    unpack(member(b"passwd", b"x") + END, into, b"mine")
    assert (into / "mine").read_bytes() == b"x"


ESCAPES = [
    member(b"top", kind=b"2", target=b".."),
    member(b"top", kind=b"5") + member(b"top/l", kind=b"2", target=b"/"),
    member(b"top", kind=b"5") + member(b"top/l", kind=b"2", target=b".."),
    member(b"top", kind=b"5") + member(b"top/l", kind=b"2", target=b"a/../../secret"),
    member(b"top", kind=b"5") + member(b"top/l", kind=b"2", target=b""),
    member(b"top", kind=b"5")
    + member(b"top/a", kind=b"5")
    + member(b"top/a/l", kind=b"2", target=b"../.."),
]


@pytest.mark.parametrize("archive", ESCAPES)
def test_links_that_lead_out_are_left_out(into: Path, archive: bytes) -> None:
    assert len(unpack(archive + END, into)) == 1
    assert not any(path.is_symlink() for path in into.rglob("*"))


INSIDE = member(b"top", kind=b"5") + member(b"top/d", kind=b"5")
HOSTILE = [
    # through a link of its own
    INSIDE + member(b"top/l", kind=b"2", target=b"d") + member(b"top/l/x", b"x"),
    INSIDE + member(b"top/l", kind=b"2", target=b"d") + member(b"top/l", kind=b"5"),
    # through a file, and to a directory that was never made
    member(b"top", b"x") + member(b"top/x", b"x"),
    member(b"top", kind=b"5") + member(b"top/none/x", b"x"),
    # hard links to what is not its own
    INSIDE + member(b"top/h", kind=b"1", target=b"../secret"),
    INSIDE + member(b"top/h", kind=b"1", target=b"/etc/passwd"),
    INSIDE + member(b"top/h", kind=b"1", target=b"secret"),
    INSIDE + member(b"top/h", kind=b"1", target=b"top/d"),
    INSIDE + member(b"top/h", kind=b"1", target=b"top/h"),
    INSIDE
    + member(b"top/f", b"x")
    + member(b"top/f", kind=b"2", target=b"d")
    + member(b"top/h", kind=b"1", target=b"top/f"),
    # more than one thing, or nothing
    member(b"top", b"x") + member(b"other", b"x"),
    b"",
]


@pytest.mark.parametrize("archive", HOSTILE)
def test_nothing_is_written_outside(into: Path, archive: bytes) -> None:
    with pytest.raises(ArchiveError):
        unpack(archive + END, into)
    assert sorted(path.name for path in into.parent.iterdir()) == ["into", "secret"]
    assert {path.name for path in into.iterdir()} <= {"copy"}
    assert (into.parent / "secret").read_text() == "untouched"


@pytest.mark.parametrize("kind", [b"3", b"4", b"6", b"Z"])
def test_devices_and_pipes_are_left_out(into: Path, kind: bytes) -> None:
    assert unpack(member(b"top", kind=kind) + END, into) == [b"top"]
    assert not list(into.iterdir())


def test_what_is_there_is_replaced_and_never_written_through(into: Path) -> None:
    secret = into.parent / "secret"
    for make in (Path.symlink_to, Path.hardlink_to):
        make(into / "copy", secret)
        unpack(member(b"top", b"new") + END, into)
        assert (into / "copy").read_bytes() == b"new"
        assert secret.read_text() == "untouched"
        (into / "copy").unlink()
    (into / "copy").symlink_to(into.parent)
    with pytest.raises(ArchiveError):
        unpack(member(b"top", kind=b"5") + member(b"top/secret", b"x") + END, into)
    assert secret.read_text() == "untouched"
    (into / "copy").unlink()
    (into / "copy").mkdir()
    with pytest.raises(IsADirectoryError):
        unpack(member(b"top", b"x") + END, into)


def changed(archive: bytes, at: int, content: bytes) -> bytes:
    """With other bytes in its first header, whose checksum fits."""
    header = bytearray(archive[:512])
    header[at : at + len(content)] = content
    del header[512:]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + archive[512:]


NAMES = st.sampled_from(
    [b"top", b"top/a", b"top/b", b"top/a/c", b"top/a/b/c", b"secret", b"top/.."]
)
TARGETS = st.sampled_from(
    [b"", b"a", b"..", b"../..", b"../secret", b"/", b"top/a", b"top/b", b"b/.."]
)


@settings(max_examples=300)
@given(
    members=st.lists(
        st.tuples(
            NAMES,
            st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"L", b"x"]),
            TARGETS,
            st.sampled_from([0, 3, 600]),
        ),
        max_size=8,
    ),
    first=st.booleans(),
    head=st.none() | st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=12)),
)
@example([], True, (124, b"\xff" * 12))
def test_any_archive_is_unpacked_inside_or_refused(
    members: list[tuple[bytes, bytes, bytes, int]],
    first: bool,
    head: tuple[int, bytes] | None,
) -> None:
    """`head`: what the first header holds somewhere, its checksum made to fit."""
    archive = member(b"top", kind=b"5") if first else b""
    if head is not None and archive:
        archive = changed(archive, *head)
    for name, kind, target, size in members:
        archive += member(name, bytes(size) if kind in b"0Lx" else b"", kind, target=target)
    with TemporaryDirectory() as path:
        home = Path(path)
        (home / "secret").write_text("untouched")
        into = home / "into"
        into.mkdir()
        with suppress(ArchiveError, IsADirectoryError):
            unpack(archive + END, into)
        assert sorted(path.name for path in home.iterdir()) == ["into", "secret"]
        assert (home / "secret").read_text() == "untouched"
        for each in into.rglob("*"):
            assert Path(os.path.realpath(each)).is_relative_to(
                into.resolve() / "copy"
            )  # loops, too
