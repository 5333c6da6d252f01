"""Debian root file systems, built as an ordinary user."""

import os
import pwd
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from teuthis.errors import ConfigurationError
from teuthis.images import debian, ext4, host, make, tar
from teuthis.images.tree import Tree

_PROGRAM = """
import os, sys
from pathlib import Path
from teuthis.images import debian
archive, uid = Path(sys.argv[1]), int(sys.argv[2])
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
os.environ["HOME"] = str(archive.parent)
flavour = debian.Flavour((), {}, own_kernel=False)
debian.bootstrap(flavour, ("netbase",), None, archive, 1_700_000_000, print)
"""
_SIZE = 1 << 30


def ordinary_user() -> int:
    """A user who may have a user namespace with users in it: ourselves, or one of the host."""
    if os.geteuid():
        return os.geteuid()
    subordinate = Path("/etc/subuid")
    lines = subordinate.read_text().splitlines() if subordinate.exists() else []
    for name in (line.partition(":")[0] for line in lines):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    pytest.skip("no user in /etc/subuid")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that another user may enter; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.timeout(900)
def test_an_ordinary_user_builds_a_root_file_system(tmp_path: Path) -> None:
    uid = ordinary_user()
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(work, uid, uid)
    archive = work / "root.tar"
    environment = {**os.environ, "TMPDIR": "/tmp"}
    command = [sys.executable, "-c", _PROGRAM, str(archive), str(uid)]
    done = subprocess.run(
        command, env=environment, cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert archive.stat().st_uid == uid
    tree = Tree()
    tar.apply(archive, tree, _SIZE)
    shadow, su, null = (tree.file(path) for path in ("etc/shadow", "usr/bin/su", "dev/null"))
    assert shadow is not None
    assert su is not None
    assert null is not None
    assert (shadow.uid, shadow.gid, stat.S_IMODE(shadow.mode)) == (0, 42, 0o640)
    assert (su.uid, stat.S_IMODE(su.mode)) == (0, 0o4755)
    assert stat.S_ISCHR(null.mode)
    assert max(node.mtime for _, node in tree.walk()) <= 1_700_000_000
    packages = make.packages(tree)
    assert {"apt", "dpkg", "netbase"} <= set(packages)
    disk = tmp_path / "disk"
    ext4.write(tree, disk, _SIZE, 0)
    owner = [host.program("debugfs"), "-R", "stat /etc/shadow", str(disk)]
    assert b"Group:    42" in subprocess.run(owner, capture_output=True, check=True).stdout


def test_the_time_of_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "12345")
    assert debian.epoch() == 12345
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ConfigurationError, match="SOURCE_DATE_EPOCH"):
        debian.epoch()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert debian.epoch() % 86400 == 0
    assert time.time() - debian.epoch() < 2 * 86400


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_PATH", "")
    sentences = list(debian.missing())
    assert any("no mmdebstrap" in sentence for sentence in sentences)
    assert any("apt-get install e2fsprogs" in sentence for sentence in sentences)
