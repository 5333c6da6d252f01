"""`teuthis image` as a program: what it prints, and its exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from teuthis.images import make, store
from teuthis.root import store as vms
from teuthis.root.plan import Plan

from .archives import archive, entry


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))


def teuthis(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "teuthis", "image", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "vmlinuz-1.2.3-x"
    path.write_bytes(bytes(4096))
    return str(path)


def test_from_import_to_removal(kernel: str, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(archive(entry("a", b"1")))
    options = ["--name", "mine", "--kernel", kernel, "--size", "64M"]
    done = teuthis("import", str(source), *options)
    assert done.returncode == 0, done.stderr
    assert "image mine: reading the archive" in done.stderr
    assert "root.tar" in teuthis("ls").stdout
    assert teuthis("verify").stdout == "mine: ok\n"
    again = teuthis("import", str(source), *options)
    assert again.returncode == 125
    assert "already" in again.stderr
    changed = store.directory() / "mine/vmlinuz"
    changed.chmod(0o644)
    changed.write_bytes(b"evil")
    found = teuthis("verify", "mine")
    assert (found.returncode, found.stdout) == (1, "mine: changed: vmlinuz\n")
    assert teuthis("rm", "mine").returncode == 0
    assert "mine" not in teuthis("ls").stdout
    assert teuthis("rm", "mine").returncode == 125


def test_what_a_named_vm_uses_stays(kernel: str, tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(archive(entry("a", b"1")))
    teuthis("import", str(source), "--name", "mine", "--kernel", kernel, "--size", "64M")
    vms.add("web", Plan(image="mine"))
    done = teuthis("rm", "mine")
    assert done.returncode == 125
    assert "in use by the VM 'web'" in done.stderr
    assert make.verify(store.find("mine")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("rm", "../x"),
        ("verify", "absent"),
        ("build", "windows"),
        ("build", "--size", "1K"),
        ("build", "--name", "tiny"),
        ("import", "/nowhere", "--name", "x"),
        ("import", "/dev/null", "--name", "-x"),
    ],
)
def test_errors_are_one_line_and_exit_125(arguments: tuple[str, ...]) -> None:
    done = teuthis(*arguments)
    assert done.returncode == 125, done.stderr
    assert done.stderr.startswith("teuthis: ")
    assert len(done.stderr.splitlines()) == 1
