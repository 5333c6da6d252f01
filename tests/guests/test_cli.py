"""The command line, as a shell sees it."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.guests.processes import CLI, PATIENCE, alive, await_true, children, run, start


def test_hello() -> None:
    done = run("run", "--", "sh", "-c", "uname -a; echo hello from inside")
    assert done.returncode == 0
    assert done.stderr == b""
    first, second = done.stdout.splitlines()
    assert first.startswith(b"Linux ")
    assert second == b"hello from inside"


def test_exit_code_and_separate_streams() -> None:
    done = run("run", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_a_signal_is_128_and_more() -> None:
    assert run("run", "--", "sh", "-c", "kill -TERM $$").returncode == 143


def test_streams_are_live() -> None:
    process = start("run", "--", "sh", "-c", "echo one; read x; echo $x; cat")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    process.stdin.write(b"two\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"two\n"
    out, err = process.communicate(b"rest", timeout=PATIENCE)
    assert (out, err, process.returncode) == (b"rest", b"", 0)


def test_binary_streams_pass_unharmed() -> None:
    data = os.urandom(10_000_000)
    assert run("run", "--", "cat", input=data).stdout == data


def test_environment_and_working_directory() -> None:
    done = run(
        "run", "--env", "A=1=2", "--env", "B=", "--workdir", "/tmp", "sh", "-c", "echo $A$B$PWD"
    )
    assert done.stdout == b"1=2/tmp\n"


def test_a_command_that_is_not_there() -> None:
    done = run("run", "--", "no-such-program")
    assert done.returncode == 127
    assert b"no-such-program" in done.stderr
    assert run("run", "--", "/etc/passwd").returncode == 126


def test_a_time_limit() -> None:
    for limit in (1, 10, 100):  # on a busy host it may not come to its first word in a second
        done = run("run", "--timeout", f"{limit}s", "--", "sh", "-c", "echo begun; sleep 1000")
        assert done.returncode == 124
        assert b"time limit of %d s" % limit in done.stderr
        if done.stdout:
            break
    assert done.stdout == b"begun\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--memory", "0"],
        ["--memory", "1P"],
        ["--timeout", "soon"],
        ["--env", "NOVALUE"],
        ["--workdir", "here"],
        ["--kernel", "/dev/null"],
        ["--kernel", "/none"],
        ["--no-such-option"],
    ],
)
def test_our_own_errors_are_125(arguments: list[str]) -> None:
    done = run("run", *arguments, "--", "true")
    assert done.returncode == 125
    assert done.stderr
    assert b"Traceback" not in done.stderr


def test_a_panic_is_ours_and_has_last_words() -> None:
    done = run("run", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60")
    assert done.returncode == 125
    assert b"kernel crashed" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_console_goes_to_stderr() -> None:
    script = r"printf 'note \033[31mred\033[0m\033]0;x\007\n' > /dev/kmsg; echo out"
    done = run("run", "--console", "--", "sh", "-c", script)
    assert done.stdout == b"out\n"
    assert b"Linux version" in done.stderr
    assert b"\x1b" not in done.stderr
    assert b"\x07" not in done.stderr


def test_flows_are_shown() -> None:
    done = run("run", "--flows", "--", "true")
    assert done.returncode == 0
    assert b"agent.exec" in done.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_everything(number: signal.Signals, code: int) -> None:
    process = start("run", "--", "sh", "-c", "echo begun; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    pids = children(process.pid)
    assert len(pids) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert b"Traceback" not in err
    assert not alive(pids)


def test_kill_9_leaves_nothing(tmp_path: Path) -> None:
    process = start(
        "run", "--", "sh", "-c", "echo begun; sleep 1000", env={"TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    pids = children(process.pid)
    process.kill()
    process.communicate(timeout=PATIENCE)
    await_true(lambda: not alive(pids))
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    command = " ".join([*CLI, "run", "--", "yes"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -2; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"y\ny\n", b"", 128 + signal.SIGPIPE)


def test_on_a_terminal_control_c_ends_it() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(CLI[0], [*CLI, "run", "--", "sh", "-c", "echo begun; cat"])
    output = b""
    while b"begun" not in output:
        output += os.read(terminal, 1000)
    pids = children(pid)
    assert len(pids) == 2
    os.write(terminal, b"line\n")
    while output.count(b"line") < 2:
        output += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)
    assert not alive(pids)
