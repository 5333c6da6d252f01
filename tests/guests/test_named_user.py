"""VMs with names as an ordinary user has them."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from teuthis.images import cache
from teuthis.images.kernel import default_kernel

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="all other tests run as this user"),
]

NOBODY = 65534
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
User = Callable[..., subprocess.CompletedProcess[bytes]]
"""Runs the command line as the user does."""


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def interpreter(home: Path) -> Path:
    """A Python that the user may run, with the packages of this one."""
    for base in (os.path.realpath(sys.executable), f"/usr/bin/python{VERSION}"):
        try:
            subprocess.run([base, "-c", ""], user=NOBODY, group=NOBODY, cwd="/", check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        place = home / "python"
        subprocess.run([base, "-m", "venv", "--without-pip", place], check=True)
        packages = sysconfig.get_path("purelib")
        link = place / f"lib/python{VERSION}/site-packages/link.pth"
        link.write_text(f"import site; site.addsitedir({packages!r})\n")
        return place / "bin/python"
    pytest.skip(f"no Python {VERSION} here that an ordinary user may run")


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """A home of the user's own; what was downloaded already is not downloaded again."""
    kernel = default_kernel().file.parents[1].name
    packages = cache.directory("packages")
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        home = Path(path)
        own = home / "cache" / "packages"
        own.mkdir(parents=True)
        for each in ("busybox-static", kernel):
            shutil.copytree(packages / each, own / each, copy_function=link_or_copy, symlinks=True)
        for pinned in packages.glob("*.name"):
            shutil.copy(pinned, own)
        python = interpreter(home)
        for place in (home, home / "cache", own, *own.glob("*.name")):
            os.chown(place, NOBODY, NOBODY)
        variables = {
            "HOME": path,
            "PATH": os.environ["PATH"],
            "TEUTHIS_CACHE": str(home / "cache"),
            "TEUTHIS_DATA": str(home / "data"),
        }

        def run(*words: str) -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                [python, "-m", "teuthis", *words],
                env=variables,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                timeout=300,
                check=False,
            )

        yield run


def test_the_whole_life(user: User) -> None:
    done = user("start", "--name", "mine", "--memory", "128M")
    assert (done.returncode, done.stderr) == (0, b"")
    try:
        assert user("exec", "mine", "--", "echo", "hello").stdout == b"hello\n"
        (entry,) = json.loads(user("ls", "--json").stdout)
        status = Path(f"/proc/{entry['keeper']['pid']}/status").read_text()
        assert f"Uid:\t{NOBODY}\t" in status
        assert user("cp", "/etc/hostname", "mine:/tmp/x").returncode == 0
        assert user("stop", "mine").returncode == 0
    finally:
        assert user("rm", "--force", "mine").returncode == 0
