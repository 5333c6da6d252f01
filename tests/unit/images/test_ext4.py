"""Trees written as ext4: read back by debugfs, checked by e2fsck, the same bytes each time."""

import hashlib
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from teuthis.errors import ImageError
from teuthis.images import ext4, host, tar
from teuthis.images.tree import Content, Node, Tree

from .archives import archive, directory, entry, hard_link, symlink

_SIZE = 64 << 20
_TIME = 1_700_000_000


def written(tree: Tree, tmp_path: Path, name: str = "disk.img", size: int = _SIZE) -> Path:
    disk = tmp_path / name
    ext4.write(tree, disk, size, _TIME)
    return disk


def from_archive(tmp_path: Path, data: bytes) -> Tree:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    tree = Tree()
    tar.apply(path, tree, 1 << 40)
    return tree


def debugfs(disk: Path, request: str) -> bytes:
    command = [host.program("debugfs"), "-R", request, str(disk)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def file(content: bytes) -> Node:
    return Node(stat.S_IFREG | 0o644, content=Content.of(content))


def test_everything_comes_back(tmp_path: Path) -> None:
    tree = from_archive(
        tmp_path,
        archive(
            directory("./", mode=0o751, uid=3),
            entry("bin/su", b"x" * 5000, mode=0o4755, uid=1, gid=70000, mtime=1_600_000_000),
            hard_link("bin/also", "bin/su"),
            entry("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("dev/big", type=tarfile.BLKTYPE, devmajor=259, devminor=65535),
            entry("fifo", type=tarfile.FIFOTYPE, mode=0o600),
            symlink("short", "bin/su"),
            symlink("long", "x" * 500),
            entry(
                "cap", b"c", pax_headers={"SCHILY.xattr.security.capability": "\1\0\0\2\n\udcff"}
            ),
            entry("lost+found/kept"),
            entry("empty"),
        ),
    )
    disk = written(tree, tmp_path)
    assert debugfs(disk, "cat /bin/also") == b"x" * 5000
    su = debugfs(disk, "stat /bin/su").decode()
    assert "Type: regular    Mode:  04755" in su
    assert "User:     1   Group: 70000" in su
    assert "Links: 2" in su
    assert "mtime: 0x5f5e1000:" in su
    assert "Mode:  0751" in debugfs(disk, "stat /").decode()
    assert "Device major/minor number: 01:03" in debugfs(disk, "stat /dev/null").decode()
    assert "number: 259:65535" in debugfs(disk, "stat /dev/big").decode()
    assert "Type: FIFO    Mode:  0600" in debugfs(disk, "stat /fifo").decode()
    assert 'Fast link dest: "bin/su"' in debugfs(disk, "stat /short").decode()
    assert debugfs(disk, "cat /long") == b"x" * 500
    assert debugfs(disk, "ea_get -V /cap security.capability") == b"\1\0\0\2\n\xff\n"
    assert b"kept" in debugfs(disk, "ls /lost+found")
    assert "Size: 0" in debugfs(disk, "stat /empty").decode()


@pytest.mark.parametrize(
    "name",
    [
        " lead",
        "a b",
        'q"uo"te',
        '"',
        "<12>",
        "-f",
        "#",
        "$(touch x)",
        "`x`",
        "a;b",
        "\\",
        "tab\there",
        "é",
        "\udcff\udcfe",
        "*",
        "x" * 255,
        '"' * 255,
        "..x",
        "~",
        "!",
        "\x1b[31m",
    ],
)
def test_names_are_only_names(name: str, tmp_path: Path) -> None:
    tree = Tree()
    tree.add(name, file(b"1"))
    tree.add(f"d/{name}/{name}", file(b"2"))
    tree.add("link", Node(stat.S_IFLNK | 0o777, target=name))
    disk = written(tree, tmp_path)
    target = tmp_path / "out"
    target.mkdir()
    subprocess.run(
        [host.program("debugfs"), "-R", f"rdump / {target}", str(disk)], check=True, stderr=-3
    )
    assert (target / name).read_bytes() == b"1"
    assert (target / "d" / name / name).read_bytes() == b"2"
    assert (target / "link").readlink() == Path(name)


def test_many_names_in_one_directory(tmp_path: Path) -> None:
    tree = Tree()
    tree.add("first", file(b"1"))
    for number in range(700):
        tree.link(f"d/{number}-{'x' * (number % 250)}", "first")
        tree.add(f"d/file-{number}", file(b""))
    disk = written(tree, tmp_path)
    assert "Links: 701" in debugfs(disk, "stat /first").decode()


def test_holes_stay_holes(tmp_path: Path) -> None:
    headers = {"GNU.sparse.map": f"{1 << 33},3,{1 << 34},0", "GNU.sparse.size": str(1 << 34)}
    tree = from_archive(tmp_path, archive(entry("a", b"abc", pax_headers=headers)))
    disk = written(tree, tmp_path)
    found = debugfs(disk, "stat /a").decode()
    assert f"Size: {1 << 34}" in found
    assert "Blockcount: 8" in found


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    data = archive(directory("d"), entry("d/a", b"1", mtime=3), hard_link("b", "d/a"))
    digests = []
    for name in ("1", "2"):
        disk = written(from_archive(tmp_path, data), tmp_path, name)
        digests.append(hashlib.sha256(disk.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_a_tree_that_does_not_fit(tmp_path: Path) -> None:
    tree = Tree()
    for number in range(5):
        tree.add(f"{number}", file(b"x" * (16 << 20)))
    with pytest.raises(ImageError, match="--size"):
        written(tree, tmp_path)


def test_a_path_that_debugfs_cannot_take(tmp_path: Path) -> None:
    tree = Tree()
    tree.add("/".join('"' * 250 for _ in range(20)), file(b"x"))
    tree.link("b", "/".join('"' * 250 for _ in range(20)))
    with pytest.raises(ImageError, match="too long"):
        written(tree, tmp_path)


def test_an_attribute_that_makes_no_sense(tmp_path: Path) -> None:
    tree = Tree()
    tree.add(
        "a", Node(stat.S_IFREG, xattrs={"system.posix_acl_access": b"bad"}, content=Content.of(b""))
    )
    with pytest.raises(ImageError, match="could not be written"):
        written(tree, tmp_path)
