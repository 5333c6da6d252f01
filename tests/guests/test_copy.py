"""`teuthis cp`: both ways, and a guest that lies."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import teuthis
from tests.guests.named import home
from tests.guests.processes import run
from tests.unit.root.archives import END, member


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with home(tmp_path_factory.mktemp("data")):
        teuthis.start("box", memory="128M").close()
        yield "box"


def tree(path: Path) -> dict[str, object]:
    """What is below `path`: modes, content with its time, links."""
    found: dict[str, object] = {}  # no times of directories: busybox does not set them
    for each in [path, *path.rglob("*")]:
        status = each.lstat()
        if each.is_symlink():
            found[str(each.relative_to(path))] = each.readlink()
        else:
            content = (each.read_bytes(), int(status.st_mtime)) if each.is_file() else None
            found[str(each.relative_to(path))] = (status.st_mode, content)
    return found


def test_a_tree_there_and_back(named: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / ("deep" * 40)).mkdir(parents=True)
    (source / "sub" / ("deep" * 40) / "f").write_bytes(os.urandom(100_000))
    (source / "empty").touch()
    (source / "run me").write_text("#!/bin/sh\necho ran\n")
    (source / "run me").chmod(0o750)
    (source / "-rf").write_bytes(b"an option")
    (source / "new\nline \x1b[31m \u00e9").write_bytes(b"odd")
    (source / "sub" / "up").symlink_to("../empty")
    assert run("cp", str(source), f"{named}:/tmp").returncode == 0
    assert run("exec", named, "/tmp/source/run me").stdout == b"ran\n"
    owner = run("exec", named, "stat", "-c", "%u:%g", "/tmp/source/empty")
    assert owner.stdout == b"0:0\n"
    done = run("cp", f"{named}:/tmp/source", str(tmp_path / "back"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert tree(tmp_path / "back") == tree(source)
    (tmp_path / "into").mkdir()
    assert run("cp", f"{named}:/tmp/source", str(tmp_path / "into")).returncode == 0
    assert tree(tmp_path / "into/source") == tree(source)


def test_a_file_there_and_back_under_other_names(named: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    assert run("cp", str(tmp_path / "data"), f"{named}:/tmp/other").returncode == 0
    assert run("exec", named, "ln", "-s", "/tmp/other", "/tmp/link").returncode == 0
    assert run("cp", f"{named}:/tmp/link", str(tmp_path / "again")).returncode == 0
    assert (tmp_path / "again").read_bytes() == data
    assert not (tmp_path / "again").is_symlink()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["/none", "box:/tmp"], b"No such file"),
        (["box:/none", "."], b"/none"),
        (["box:/etc/passwd", "/none/here"], b"No such file"),
        (["/etc/passwd", "box:/none/here/x"], b"/none/here"),
        (["box:/", "."], b"name a file"),
        (["/etc/passwd", "/tmp"], b"NAME:PATH"),
        (["box:/a", "box:/b"], b"NAME:PATH"),
        (["box:relative", "."], b"absolute"),
        (["nobody:/x", "."], b"no VM"),
        (["Not A Name:/x", "."], b"cannot be the name"),
        (["/dev/null", "box:/tmp"], b"device"),
        (["--max-size", "10", "box:/etc/passwd", "."], b"more than 10 bytes"),
    ],
)
def test_what_cannot_be(
    named: str, words: list[str], says: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("cp", *words)
    assert done.returncode == 125
    assert says in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


ATTACKS = {
    "outside": member(b"top", kind=b"5") + member(b"top/../../escaped", b"x"),
    "absolute": member(b"/tmp/escaped", b"x"),
    "through a link": member(b"top", kind=b"5")
    + member(b"top/l", kind=b"2", target=b"..")
    + member(b"top/l/escaped", b"x"),
    "hard link": member(b"top", kind=b"5") + member(b"top/h", kind=b"1", target=b"/etc/passwd"),
    "two things": member(b"x", b"x") + member(b"escaped", b"x"),
    "garbage": b"\x1b]0;escape\x07" * 100,
}


def replace_shell(vm: teuthis.NamedVM, line: bytes) -> None:
    """From now on the guest's `sh` does `line`, whatever it is told."""
    vm.run(["mv", "/bin/sh", "/bin/honest"], check=True)
    vm.write_file("/bin/sh", b"#!/bin/busybox sh\n" + line + b"\n", 0o755)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_tar_in_the_guest(named: str, attack: str, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with teuthis.connect(named) as vm:
        vm.write_file("/tmp/archive", ATTACKS[attack] + END)
        try:
            replace_shell(vm, b"cat /tmp/archive")
            with pytest.raises(teuthis.CommandError, match="refused") as caught:
                vm.copy_out("/etc/passwd", into / "x")
            assert vm.flows()["client.archive"].kinds["malformed"] == 1
        finally:
            vm.run(["mv", "/bin/honest", "/bin/sh"], check=True)
    assert "\x1b" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["into"]
    assert {path.name for path in into.iterdir()} <= {"x"}


def test_an_endless_archive(named: str, tmp_path: Path) -> None:
    with teuthis.connect(named) as vm:
        try:
            replace_shell(vm, b"cat /dev/zero")
            with pytest.raises(teuthis.CommandError):  # an empty archive, and no end
                vm.copy_out("/etc/passwd", tmp_path / "x")
        finally:
            vm.run(["mv", "/bin/honest", "/bin/sh"], check=True)
        assert vm.run(["echo", "well"]).stdout == b"well\n"


def test_an_archive_after_whose_end_more_comes(named: str, tmp_path: Path) -> None:
    with teuthis.connect(named) as vm:
        vm.write_file("/tmp/archive", member(b"x", b"x") + END)
        try:
            replace_shell(vm, b"cat /tmp/archive /dev/zero")
            with pytest.raises(teuthis.OutputTooLarge):
                vm.copy_out("/etc/passwd", tmp_path / "x", max_size=1 << 20)
        finally:
            vm.run(["mv", "/bin/honest", "/bin/sh"], check=True)


def test_what_has_no_place_on_a_host_is_left_out(named: str, tmp_path: Path) -> None:
    script = r"""mkdir /tmp/odd; cd /tmp/odd; echo x > f; chmod 6755 f; ln -s /etc/passwd out
        ln -s f in; mknod pipe p; mknod zero c 1 5; ln -s x "$(printf '\033[31mred')" """
    assert run("exec", named, "sh", "-c", script).returncode == 0
    done = run("cp", f"{named}:/tmp/odd", str(tmp_path))
    assert done.returncode == 1
    assert all(name in done.stderr for name in (b"odd/out", b"odd/pipe", b"odd/zero"))
    assert b"\x1b" not in done.stderr
    names = {path.name for path in (tmp_path / "odd").iterdir()}
    assert names == {"f", "in", "\x1b[31mred"}
    assert stat.S_IMODE((tmp_path / "odd/f").stat().st_mode) & 0o7000 == 0
    with teuthis.connect(named) as vm:
        vm.copy_out("/tmp/odd", tmp_path / "again")
        assert vm.flows()["client.archive"].kinds == {"left-out": 3}


def test_a_vm_of_this_program_copies_too(vm: teuthis.VM, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    vm.copy_in(tmp_path / "f", "/tmp/copied")
    assert vm.read_file("/tmp/copied") == b"content"
    assert vm.copy_out("/tmp/copied", tmp_path) == []
    assert (tmp_path / "copied").read_bytes() == b"content"
