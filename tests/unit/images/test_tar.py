"""Archives into trees: what they mean, and every kind of hostile one."""

import stat
import struct
import tarfile
from pathlib import Path

import pytest

from teuthis.errors import ImageError
from teuthis.images import tar, tree
from teuthis.images.tree import Tree

from .archives import Member, archive, directory, entry, hard_link, symlink

_MAX_FILE = 1 << 30


def applied(tmp_path: Path, *layers: bytes, whiteouts: bool = False) -> Tree:
    made = Tree()
    for number, layer in enumerate(layers):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(layer)
        made.new_layer()
        tar.apply(path, made, _MAX_FILE, whiteouts=whiteouts)
    return made


def paths(made: Tree) -> list[str]:
    return [path for path, _ in made.walk()][1:]


def content(made: Tree, path: str) -> bytes | None:
    node = made.file(path)
    return node.content.read(1 << 20) if node and node.content else None


def test_what_a_header_says_is_kept(tmp_path: Path) -> None:
    made = applied(
        tmp_path,
        archive(
            directory("./", mode=0o700, mtime=9),
            directory("./dev/"),
            entry("./bin/su", b"x", mode=0o4755, uid=1, gid=70000, mtime=5),
            entry("./dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("./dev/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o660),
            entry("./run/fifo", type=tarfile.FIFOTYPE),
            symlink("./lib", "usr/lib"),
            hard_link("./bin/also", "./bin/su"),
            entry("./cap", pax_headers={"SCHILY.xattr.security.capability": "\1\0\0\2\n\udcff"}),
        ),
    )
    su = made.file("bin/su")
    assert su is not None
    assert made.file("bin/also") is su
    assert (su.mode, su.uid, su.gid, su.mtime) == (stat.S_IFREG | 0o4755, 1, 70000, 5)
    assert made.root.node.mode == stat.S_IFDIR | 0o700
    null, disk, fifo = (made.file(path) for path in ("dev/null", "dev/sda", "run/fifo"))
    assert null is not None
    assert disk is not None
    assert fifo is not None
    assert (null.mode, null.device) == (stat.S_IFCHR | 0o666, (1, 3))
    assert (disk.mode, disk.device) == (stat.S_IFBLK | 0o660, (8, 0))
    assert stat.S_ISFIFO(fifo.mode)
    capable = made.file("cap")
    assert capable is not None
    assert capable.xattrs == {"security.capability": b"\1\0\0\2\n\xff"}


def test_the_last_of_several_entries_counts(tmp_path: Path) -> None:
    made = applied(
        tmp_path,
        archive(
            entry("a", b"1"),
            entry("a", b"2"),
            directory("d"),
            entry("d/kept"),
            directory("d", mode=0o700),
            symlink("l", "a"),
            entry("l", b"no longer a link"),
            directory("gone/below"),
            entry("gone", b"file"),
        ),
    )
    assert paths(made) == ["/a", "/d", "/d/kept", "/gone", "/l"]
    assert content(made, "a") == b"2"
    assert content(made, "l") == b"no longer a link"


def test_links_are_followed_as_in_a_chroot(tmp_path: Path) -> None:
    made = applied(
        tmp_path,
        archive(directory("usr/lib"), symlink("lib", "/usr/lib"), symlink("up", "../../../usr")),
        archive(entry("lib/x", b"1"), entry("up/lib/y", b"2"), entry("/usr/z", b"3")),
    )
    assert paths(made) == ["/lib", "/up", "/usr", "/usr/lib", "/usr/lib/x", "/usr/lib/y", "/usr/z"]
    assert content(made, "lib/x") == b"1"


def test_a_hard_link_keeps_the_file_when_its_first_name_is_replaced(tmp_path: Path) -> None:
    made = applied(
        tmp_path, archive(entry("a", b"old"), hard_link("b", "a")), archive(entry("a", b"new"))
    )
    assert (content(made, "a"), content(made, "b")) == (b"new", b"old")


def test_whiteouts(tmp_path: Path) -> None:
    lower = archive(
        entry("a"), entry("b"), directory("d"), entry("d/1"), directory("d/sub"), entry("d/sub/2")
    )
    upper = archive(entry(".wh.a"), entry("d/new"), entry("d/.wh.1"), entry("d/.wh.absent"))
    assert paths(applied(tmp_path, lower, upper, whiteouts=True)) == [
        "/b",
        "/d",
        "/d/new",
        "/d/sub",
        "/d/sub/2",
    ]
    assert "/d/.wh.1" in paths(applied(tmp_path, lower, upper))  # no layer: a name like others


@pytest.mark.parametrize("last", [False, True])
def test_an_opaque_directory_hides_lower_layers_only(last: bool, tmp_path: Path) -> None:
    lower = archive(directory("d/sub"), entry("d/1"), entry("d/sub/2"), entry("d/keep", b"old"))
    own = [entry("d/sub/3"), entry("d/keep", b"new")]
    mark = [entry("d/.wh..wh..opq")]
    upper = archive(*(own + mark if last else mark + own))
    made = applied(tmp_path, lower, upper, whiteouts=True)
    assert paths(made) == ["/d", "/d/keep", "/d/sub", "/d/sub/3"]
    assert content(made, "d/keep") == b"new"


@pytest.mark.parametrize("last", [False, True])
def test_a_whiteout_spares_what_its_own_layer_has(last: bool, tmp_path: Path) -> None:
    lower = archive(directory("d"), entry("d/1"), entry("f", b"old"))
    own = [directory("d"), entry("d/2"), entry("f", b"new")]
    marks = [entry(".wh.d"), entry(".wh.f")]
    made = applied(
        tmp_path, lower, archive(*(own + marks if last else marks + own)), whiteouts=True
    )
    assert paths(made) == ["/d", "/d/2", "/f"]
    assert content(made, "f") == b"new"


def test_a_whiteout_cannot_lead_out(tmp_path: Path) -> None:
    for name in (".wh.", ".wh...", "../.wh.x", "d/../.wh.x"):
        with pytest.raises(ImageError):
            applied(tmp_path, archive(entry("x")), archive(entry(name)), whiteouts=True)


_DEEP = "d/" * 300 + "f"
HOSTILE: dict[str, tuple[Member, ...]] = {
    "parent": (entry("../outside/file", b"evil"),),
    "parent-inside": (entry("a/../../outside/file", b"evil"),),
    "hard-link-to-parent": (hard_link("a", "../outside/secret"),),
    "hard-link-to-absolute": (hard_link("a", "/etc/passwd"),),
    "hard-link-to-itself": (hard_link("a", "a"),),
    "hard-link-to-directory": (directory("d"), hard_link("a", "d")),
    "hard-link-before-its-target": (hard_link("a", "b"), entry("b")),
    "link-loop": (symlink("a", "b"), symlink("b", "a"), entry("a/x", b"evil")),
    "link-to-itself": (symlink("a", "a/a/a"), entry("a/x", b"evil")),
    "below-a-file": (entry("a", b""), entry("a/b", b"evil")),
    "below-a-device": (entry("a", type=tarfile.CHRTYPE), entry("a/b", b"evil")),
    "root-is-a-file": (entry("./", b"evil"),),
    "root-is-a-link": (symlink(".", "/etc"),),
    "empty-link": (symlink("a", ""),),
    "long-link": (symlink("a", "x" * 5000),),
    "line-break": (entry('a\nmkdir "b"', b"evil"),),
    "line-break-in-target": (symlink("a", "b\nc"),),
    "carriage-return": (entry("a\rb", b"evil"),),
    "long-name": (entry("x" * 256, b"evil"),),
    "long-directory": (entry("x" * 256 + "/a", b"evil"),),
    "deep": (entry(_DEEP, b"evil"),),
    "deep-through-links": (
        directory("l0"),
        *(symlink(f"l{number + 1}", f"l{number}/" + "d/" * 40) for number in range(9)),
        entry("l9/x"),
    ),
    "unknown-kind": (entry("a", type=b"Z"),),
    "huge": (entry("a", size=0, pax_headers={"size": str(1 << 62)}),),
    "negative-size": (entry("a", pax_headers={"size": "-1"}),),
    "negative-owner": (entry("a", pax_headers={"uid": "-1"}),),
    "huge-owner": (entry("a", pax_headers={"gid": str(1 << 40)}),),
    "odd-attribute": (entry("a", pax_headers={"SCHILY.xattr.user.a\nb": "1"}),),
    "huge-attribute": (entry("a", pax_headers={"SCHILY.xattr.user.a": "x" * 5000}),),
    "sparse-bomb": (
        entry(
            "a",
            pax_headers={
                "GNU.sparse.map": f"0,0,{1 << 60},0",
                "GNU.sparse.size": str(1 << 60),
                "GNU.sparse.name": "a",
            },
        ),
    ),
    "sparse-backwards": (
        entry(
            "a",
            b"x" * 512,
            pax_headers={"GNU.sparse.map": "512,256,0,256", "GNU.sparse.size": "1024"},
        ),
    ),
    "sparse-beyond": (
        entry(
            "a",
            b"x" * 512,
            pax_headers={"GNU.sparse.map": "1000,512", "GNU.sparse.size": "1024"},
        ),
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        applied(tmp_path, archive(*HOSTILE[kind]))


def test_a_sparse_file_keeps_its_holes(tmp_path: Path) -> None:
    headers = {"GNU.sparse.map": "512,3,2000,2", "GNU.sparse.size": "4096"}
    made = applied(tmp_path, archive(entry("a", b"abcde", pax_headers=headers)))
    assert content(made, "a") == bytes(512) + b"abc" + bytes(1485) + b"de" + bytes(2094)


def header_with(field: slice, value: bytes) -> bytes:
    """An archive whose first header has other bytes in one field, with a right checksum."""
    block = bytearray(archive(entry("a", b"x" * 600), format=tarfile.USTAR_FORMAT))
    block[field] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def test_a_size_that_leads_backwards_ends_no_loop(tmp_path: Path) -> None:
    """CVE-2025-8194: `tarfile` reads the same header again and again."""
    with pytest.raises(ImageError):
        applied(tmp_path, header_with(slice(124, 136), b"\xff" * 8 + struct.pack(">i", -1024)))


def test_a_header_that_asks_for_all_memory(tmp_path: Path) -> None:
    made = bytearray(archive(entry("a", pax_headers={"comment": "x" * 2000})))
    made[124:136] = b"\x80" + (1 << 40).to_bytes(11, "big")
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made[:512])
    with pytest.raises(ImageError, match="headers of impossible size"):
        applied(tmp_path, bytes(made))


def test_a_map_of_holes_that_fills_the_memory(tmp_path: Path) -> None:
    """GNU tar's first form of sparse files: each block of the map says that another follows."""
    spans = b"00000000001\0" * 42
    block = bytearray(header_with(slice(156, 157), b"S")[:512])
    block[257:265] = b"ustar  \0"
    block[482:483] = b"\1"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(ImageError, match="headers of impossible size"):
        applied(tmp_path, bytes(block) + (spans + b"\1" + bytes(7)) * 10_000)


def test_more_pieces_of_sparse_files_than_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "MAX_ENTRIES", 10)
    holes = ",".join(f"{2 * at},1" for at in range(6))
    headers = {"GNU.sparse.map": holes, "GNU.sparse.size": "4096"}
    files = [entry(name, b"abcdef", pax_headers=headers) for name in "ab"]
    applied(tmp_path, archive(files[0]))
    with pytest.raises(ImageError, match="more members"):
        applied(tmp_path, archive(*files))


def test_headers_for_all_members_that_fill_the_memory(tmp_path: Path) -> None:
    made = b""
    for number in range(80):
        block = tarfile.TarInfo.create_pax_global_header({f"comment{number}": "x" * 1000})
        made += block + archive(entry(f"f{number}"), format=tarfile.USTAR_FORMAT)[:512]
    end = bytes(1024)
    assert len(paths(applied(tmp_path, made[: len(made) // 2] + end))) == 40
    with pytest.raises(ImageError, match="more headers"):
        applied(tmp_path, made + end)


def test_headers_inside_headers(tmp_path: Path) -> None:
    """Each extended header is read by a call inside the one before it."""
    one = archive(entry("a", pax_headers={"comment": "x"}))[:1024]
    with pytest.raises(ImageError):
        applied(tmp_path, one * 5000)


def test_an_archive_that_is_cut_off_anywhere(tmp_path: Path) -> None:
    whole = archive(entry("a", b"x" * 600), entry("b", b"y"), format=tarfile.USTAR_FORMAT)
    end = 512 + 1024 + 512 + 512
    assert paths(applied(tmp_path, whole)) == ["/a", "/b"]
    for size in range(0, end, 128):
        with pytest.raises(ImageError):
            applied(tmp_path, whole[:size])


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    whole = bytearray(archive(entry("a"), entry("b"), format=tarfile.USTAR_FORMAT))
    whole[512 + 10] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        applied(tmp_path, bytes(whole))


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_ENTRIES", 10)
    with pytest.raises(ImageError, match="more than 10 entries"):
        applied(tmp_path, archive(*(entry(f"d{number}/f") for number in range(6))))


@pytest.mark.parametrize("data", [b"", b"x" * 10240, b"\xff" * 512])
def test_what_is_no_archive(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        applied(tmp_path, data)
