"""Programs on a terminal: through the library, and on a real one driven by the test."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

import teuthis
from tests.guests.processes import CLI, PATIENCE, alive, await_true, children, run


class Screen:
    """The other side of the terminal on which a command runs."""

    def __init__(self, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.size(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [*CLI, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        self.seen = b""

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def expect(self, pattern: bytes) -> bytes:
        """What was shown up to the end of `pattern`, which is then forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen)):
            rest = deadline - time.monotonic()
            assert rest > 0, (pattern, self.seen)
            if select.select([self.master], [], [], rest)[0]:
                self.seen += os.read(self.master, 65536)
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def end(self) -> int:
        """Waits for the command's end, as a terminal that goes on reading."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0.05)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.wait()

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def shell() -> Iterator[Screen]:
    screen = Screen("shell", "--memory", "128M", rows=30, columns=100)
    screen.expect(rb"# ")
    yield screen
    screen.close()


def test_a_program_on_a_terminal(vm: teuthis.VM) -> None:
    script = "tty; stty size; read x; stty size; echo $x $TERM; exit 3"
    with vm.popen(
        ["sh", "-c", script], stdin=teuthis.PIPE, env={"TERM": "vt100"}, tty=(33, 132)
    ) as process:
        assert process.stderr is None
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"/dev/pts/")
        assert process.stdout.readline() == b"33 132\r\n"
        process.resize(50, 200)
        process.stdin.write(b"words\n")
        process.stdin.flush()
        assert process.stdout.read() == b"words\r\n50 200\r\nwords vt100\r\n"
        assert process.wait() == 3


@pytest.mark.parametrize("size", [(0, 80), (24, 5000), (-1, 1)])
def test_sizes_that_no_terminal_has(vm: teuthis.VM, size: tuple[int, int]) -> None:
    with pytest.raises(teuthis.ConfigurationError, match="no terminal"):
        vm.popen(["true"], tty=size)


def test_end_of_input_on_a_terminal(vm: teuthis.VM) -> None:
    with vm.popen(["cat"], stdin=teuthis.PIPE, tty=(24, 80)) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


def test_nobody_else_has_a_programs_terminal(vm: teuthis.VM) -> None:
    with vm.popen(["cat"], stdin=teuthis.PIPE, tty=(24, 80)) as process:
        assert process.stdin is not None
        process.stdin.write(b"words\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"words\r\n"
        descriptors = vm.run(["ls", "/proc/self/fd"]).stdout.split()
        assert descriptors == [b"0", b"1", b"2", b"3"]  # the last one is the directory


def test_a_shell(shell: Screen) -> None:
    shell.type(b"tty; stty size; echo $TERM; pwd\r")
    shown = shell.expect(rb"/dev/pts/\d+\r\n30 100\r\nxterm-256color\r\n/root\r\n")
    assert shown
    shell.size(40, 120)
    os.kill(shell.process.pid, signal.SIGWINCH)
    shell.type(b"until stty size | grep '40 120'; do sleep 0.1; done\r")
    shell.expect(rb"40 120\r\n")
    shell.type(b"sh -c 'echo begun $$; exec sleep 1000'\r")
    shell.expect(rb"begun \d+\r\n")
    shell.type(b"\x03")  # ^C reaches the program, not the command
    shell.expect(rb"\^C[^#]*# ")
    shell.type(b"printf 'a\\033[31mred\\033]52;c;QUJD\\007b\\033[21t\\033[0m'; echo\r")
    shell.expect(rb"\r\na\x1b\[31mredb\x1b\[0m\r\n")
    shell.type(b"exit 7\r")
    assert shell.end() == 7
    assert b"\x1b[?1049l" in shell.seen
    assert shell.restored


def test_a_full_screen_program(shell: Screen) -> None:
    shell.type(b"vi /tmp/file\r")
    shell.expect(rb"\x1b\[\?1049h(?s:.)*- /tmp/file")
    shell.type(b"i")
    shell.expect(rb"I /tmp/file")
    shell.type(b"some words")
    shell.expect(rb"some words")
    shell.type(b"\x1b")
    shell.expect(rb"- /tmp/file")
    shell.type(b":wq\r")
    shell.expect(rb"# ")
    shell.type(b"cat /tmp/file; exit\r")
    shell.expect(rb"\r\nsome words\r\n")
    assert shell.end() == 0


def test_the_way_out_and_signals_restore_the_terminal(shell: Screen) -> None:
    shell.type(b"sh -c 'echo begun $$; exec sleep 1000'\r")
    shell.expect(rb"begun \d+\r\n")
    assert not shell.restored
    pids = children(shell.process.pid)
    shell.type(b"\r~.")
    assert shell.end() == 129
    assert shell.restored
    await_true(lambda: not alive(pids))
    other = Screen("run", "--tty", "--memory", "128M", "--", "sleep", "1000")
    try:
        await_true(lambda: not other.restored)
        other.process.send_signal(signal.SIGTERM)
        assert other.end() == 143
        assert other.restored
    finally:
        other.close()


def test_a_guest_that_ends_restores_the_terminal(shell: Screen) -> None:
    shell.type(b"echo c > /proc/sysrq-trigger\r")
    assert shell.end() == 125
    assert shell.restored
    assert b"the guest's kernel crashed" in shell.seen


def test_power_off_ends_a_shell(shell: Screen) -> None:
    shell.type(b"poweroff\r")
    assert shell.end() == 0
    assert shell.restored
    assert b"switched itself off" in shell.seen


def test_run_with_a_terminal_and_a_time_limit() -> None:
    screen = Screen("run", "-t", "--memory", "128M", "--timeout", "2s", "--", "sleep", "1000")
    try:
        assert screen.end() == 124
        assert screen.restored
    finally:
        screen.close()


@pytest.mark.parametrize("arguments", [("shell",), ("run", "--tty", "--", "true")])
def test_no_terminal_on_our_side(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 125
    assert b"there is no terminal" in done.stderr
