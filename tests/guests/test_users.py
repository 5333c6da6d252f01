"""Who programs run as: what an image says (`User`), and what is said instead of it."""

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import teuthis
from tests.guests import named
from tests.guests.processes import run
from tests.unit.images.archives import Oci, archive, directory, entry, symlink
from teuthis.cli import terminal
from teuthis.errors import CommandError, ConfigurationError
from teuthis.images import packages
from teuthis.images.importing import import_image

_APPLETS = (
    *("cat", "chmod", "echo", "grep", "id", "ls", "mkdir", "readlink", "sh", "sleep", "stat"),
    *("stty", "sync", "tar", "test", "touch", "true"),
)
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An app:/srv/app:/bin/sh\n"
_GROUP = b"root:x:0:\napp:x:1001:\naudio:x:29:other,app\nvideo:x:44:app\nstaff:x:50:\n"
_WHO = 'echo $(id -u) $(id -g) $(id -G) "$HOME"'
_APP = b"1000 1001 1001 29 44 /srv/app\n"
_ROOT = b"0 0 0 /root\n"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container image with `User: app`, in a data directory of its own."""
    busybox = (packages.unpacked("busybox-static") / "bin/busybox").read_bytes()
    layer = archive(
        directory("bin"),
        entry("bin/busybox", busybox, mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in _APPLETS),
        directory("etc"),
        entry("etc/passwd", _PASSWD),
        entry("etc/group", _GROUP),
        entry("etc/shadow", b"secret\n", mode=0o600),
        entry("srv/app", type=tarfile.DIRTYPE, mode=0o755, uid=1000, gid=1001),
        directory("root"),
        directory("tmp"),
    )
    config = {"User": "app", "Cmd": ["sh", "-c", _WHO], "Env": ["PATH=/bin"]}
    made = Oci()
    made.index(made.image([gzip.compress(layer, 1)], plain=[layer], config=config))
    with named.home(tmp_path_factory.mktemp("data") / "data") as data:
        source = data.parent / "app.tar"
        source.write_bytes(made.archive())
        yield import_image(source, name="app", size=192 << 20, say=lambda step: None).name


@pytest.fixture(scope="module")
def app_vm(app: str) -> Iterator[teuthis.VM]:
    with teuthis.VM("192M", image=app) as vm:
        yield vm


def who(vm: teuthis.VM | teuthis.NamedVM, user: str | None = None) -> bytes:
    return vm.run(["sh", "-c", _WHO], user=user, check=True).stdout


# ---- the image's user, and another ---------------------------------------------------------------


def test_a_container_runs_as_its_user(app: str) -> None:
    for words, said in [
        ((), _APP),
        (("--user", "root"), _ROOT),
        (("--user", "0"), _ROOT),
        (("--user", "app:staff"), b"1000 50 50 /srv/app\n"),
    ]:
        done = run("run", "--image", app, *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, said, b"")


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (None, _APP),
        ("app", _APP),
        ("1000", _APP),
        ("app:video", b"1000 44 44 /srv/app\n"),
        ("app:7", b"1000 7 7 /srv/app\n"),
        ("4711", b"4711 0 0 /\n"),
        ("4711:4712", b"4711 4712 4712 /\n"),
        ("root", _ROOT),
        ("0", _ROOT),
        ("root:staff", b"0 50 50 /root\n"),
    ],
)
def test_users_by_name_and_number(app_vm: teuthis.VM, user: str | None, said: bytes) -> None:
    assert who(app_vm, user) == said


def test_home_is_what_is_said(app_vm: teuthis.VM) -> None:
    result = app_vm.run(["sh", "-c", "echo $HOME"], env={"HOME": "/elsewhere"})
    assert result.stdout == b"/elsewhere\n"


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("nobody", "the guest has no user 'nobody' in its /etc/passwd"),
        ("app:games", "the guest has no group 'games' in its /etc/group"),
        ("-1", "no user '-1'"),
        ("4294967295", "no user '4294967295'"),
        ("app:-1", "no group '-1'"),
    ],
)
def test_who_is_not_there_runs_nothing(app_vm: teuthis.VM, user: str, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        app_vm.run(["touch", "/tmp/ran"], user=user)
    with pytest.raises(CommandError, match=words):
        app_vm.popen(["touch", "/tmp/ran"], user=user, tty=(24, 80))
    assert app_vm.run(["test", "-e", "/tmp/ran"]).exit_code == 1
    with pytest.raises(ConfigurationError, match="user"):
        app_vm.run(["true"], user="x" * 257)


def test_the_command_says_who_is_missing(app: str) -> None:
    done = run("run", "--image", app, "--user", "nobody", "--", "true")
    assert done.returncode == 125
    assert b"the guest has no user 'nobody' in its /etc/passwd" in done.stderr


def test_named_vms_snapshots_and_copies_keep_the_user(app: str, tmp_path: Path) -> None:
    with teuthis.start("web", image=app, memory="192M", user="app:staff") as vm:
        assert who(vm) == b"1000 50 50 /srv/app\n"
    words = ("web", "--", "sh", "-c", _WHO)
    assert run("exec", *words).stdout == b"1000 50 50 /srv/app\n"
    assert run("exec", "--user", "0", *words).stdout == _ROOT
    done = run("exec", "--user", "games", *words)
    assert (done.returncode, b"no user 'games'" in done.stderr) == (125, True)
    with teuthis.connect("web") as vm:
        vm.snapshot(tmp_path / "saved")
        (copy,) = vm.fork("copy")
        with copy:
            assert who(copy) == b"1000 50 50 /srv/app\n"
    with teuthis.VM.restore(tmp_path / "saved") as restored:
        assert who(restored) == b"1000 50 50 /srv/app\n"
    with teuthis.VM.restore(tmp_path / "saved", user="root") as restored:
        assert who(restored) == _ROOT
        (fork,) = restored.fork()
        with fork:
            assert who(fork) == _ROOT


# ---- what another user than root can do ----------------------------------------------------------


def test_rights_are_given_up(vm: teuthis.VM) -> None:
    script = "grep -E '^(Uid|Gid|Groups|Cap(Prm|Eff|Amb)):' /proc/self/status; echo $HOME"
    none = ["0000000000000000"]
    status = vm.run(["sh", "-c", script], user="nobody", check=True).stdout.decode().split()
    assert status == [
        *("Uid:", *["65534"] * 4, "Gid:", *["65534"] * 4, "Groups:", "65534"),
        *("CapPrm:", *none, "CapEff:", *none, "CapAmb:", *none, "/"),
    ]
    for forbidden in (
        "cat /proc/1/environ",
        "touch /etc/new",
        "mknod /tmp/null c 1 3",
        "mount -t tmpfs none /mnt",
        "kill -0 1",
        "dmesg -n 1",
        "chroot / true",
    ):
        assert vm.run(["sh", "-c", forbidden], user="nobody").exit_code != 0, forbidden


def test_files_belong_to_who_makes_them(app_vm: teuthis.VM) -> None:
    assert app_vm.run(["touch", "/srv/app/made"], check=True).exit_code == 0
    assert app_vm.run(["stat", "-c", "%u:%g", "/srv/app/made"]).stdout == b"1000:1001\n"
    assert app_vm.run(["cat", "/etc/shadow"]).exit_code != 0
    assert app_vm.run(["cat", "/etc/shadow"], user="root").stdout == b"secret\n"


@pytest.mark.parametrize("user", ["nobody", "4711:4712", "root"])
def test_streams_can_be_opened_once_more(vm: teuthis.VM, user: str) -> None:
    script = "cat /dev/stdin; echo out >/dev/stdout; echo err >/proc/self/fd/2"
    result = vm.run(["sh", "-c", script], b"in\n", user=user)
    assert (result.stdout, result.stderr, result.exit_code) == (b"in\nout\n", b"err\n", 0)


def test_a_terminal_is_its_users(vm: teuthis.VM) -> None:
    # `cat` is a job of its own in the foreground: ^C is for it alone.
    script = "stat -c %u $(tty); echo x >/dev/tty; trap : INT; cat; echo code $?; read y; echo $y"
    with vm.popen(
        ["sh", "-m", "-c", script], stdin=teuthis.PIPE, user="nobody", tty=(24, 80)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"65534\r\n"
        assert process.stdout.readline() == b"x\r\n"
        process.stdin.write(b"runs\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"runs\r\n"  # shown by the terminal …
        assert process.stdout.readline() == b"runs\r\n"  # … and by `cat`
        process.stdin.write(b"\x03")
        process.stdin.flush()
        while (line := process.stdout.readline()) in (b"^C\r\n", b"\r\n", b"^C"):
            pass
        assert line.removeprefix(b"^C") == b"code 130\r\n"
        process.stdin.write(b"bye\n")
        process.stdin.flush()
        assert process.stdout.read() == b"bye\r\nbye\r\n"


def test_a_shell_of_a_user_without_a_home(vm: teuthis.VM) -> None:
    home = {"HOME": "/nonexistent"}
    result = vm.run(terminal.SHELL, b"pwd; id -un\n", user="nobody", env=home)
    assert (result.stdout, result.stderr) == (b"/\nnobody\n", b"")


def test_it_can_be_killed(vm: teuthis.VM) -> None:
    with pytest.raises(teuthis.CommandTimeout):
        vm.run(["sleep", "1000"], timeout=1, user="nobody")


def test_files_are_copied_as_root(app_vm: teuthis.VM, tmp_path: Path) -> None:
    app_vm.write_file("/etc/written", b"x", mode=0o600)
    assert app_vm.read_file("/etc/shadow") == b"secret\n"
    (tmp_path / "sent").write_bytes(b"y")
    app_vm.copy_in(tmp_path / "sent", "/etc")
    assert app_vm.run(["stat", "-c", "%u:%g", "/etc/written", "/etc/sent"]).stdout == b"0:0\n" * 2
    app_vm.copy_out("/etc/shadow", tmp_path)
    assert (tmp_path / "shadow").read_bytes() == b"secret\n"


def test_files_that_are_none() -> None:
    """A guest's files are its own affair, also where they would make the agent wait."""
    with teuthis.VM("128M", cold=True) as vm:
        for make in ("mkfifo /etc/passwd", "ln -s /dev/zero /etc/passwd", "mkdir /etc/passwd", ""):
            vm.run(["sh", "-c", f"rm -rf /etc/passwd; {make or 'true'}"], user="root", check=True)
            with pytest.raises(CommandError, match="no user 'nobody'"):
                vm.run(["true"], user="nobody")
            owners = vm.run(["stat", "-L", "-c", "%u", "/proc/self"], user="4711").stdout
            assert owners == b"4711\n"  # `id` would read the file itself
