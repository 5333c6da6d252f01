import hashlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import teuthis
from teuthis import PIPE, STDOUT, VM


def test_hello(vm: VM) -> None:
    result = vm.run(["sh", "-c", "echo hi"], timeout=100)
    assert (result.exit_code, result.signal) == (0, None)
    assert (result.stdout, result.stderr) == (b"hi\n", b"")
    assert 0 < result.duration < 100


def test_an_unmodified_debian_kernel(vm: VM) -> None:
    assert b"Debian" in vm.run(["uname", "-a"]).stdout


@pytest.mark.parametrize("code", [0, 1, 2, 42, 127, 255])
def test_exit_codes(vm: VM, code: int) -> None:
    assert vm.run(["sh", "-c", f"exit {code}"]).exit_code == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_that_kills(vm: VM, number: signal.Signals) -> None:
    result = vm.run(["sh", "-c", f"kill -{number:d} $$"])
    assert (result.exit_code, result.signal) == (128 + number, number)


def test_sending_signals(vm: VM) -> None:
    script = "trap 'echo got it; exit 7' USR1; echo ready; while :; do sleep 0.1; done"
    with vm.popen(["sh", "-c", script]) as process:
        assert process.stdout.readline() == b"ready\n"
        assert process.returncode is None
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == b"got it\n"
        assert process.wait(100) == 7
    assert process.returncode == 7
    process.kill()


def test_kill_and_terminate(vm: VM) -> None:
    for end, number in ((VM.popen, signal.SIGKILL), (VM.popen, signal.SIGTERM)):
        process = end(vm, ["sleep", "1000"])
        assert process.pid > 1
        (process.kill if number == signal.SIGKILL else process.terminate)()
        assert process.wait(100) == -number
        process.close()


def test_pipelines(vm: VM) -> None:
    script = "seq 1 1000 | grep 7 | sort -rn | head -3 | tr '\\n' ,"
    assert vm.run(["sh", "-c", script]).stdout == b"997,987,979,"


def test_arguments_pass_unharmed(vm: VM) -> None:
    arguments = ["", " ", "'\"$HOME`*", "a\nb", "grüße", "x" * 5000]
    result = vm.run(["sh", "-c", 'for a; do printf "%s\\0" "$a"; done', "sh", *arguments])
    assert result.stdout.decode().split("\0")[:-1] == arguments


def test_environment_and_working_directory(vm: VM) -> None:
    script = 'echo "$A-$B-$PWD"; env | wc -l'
    result = vm.run(["sh", "-c", script], env={"A": "1 2", "B": "ü"}, cwd="/tmp")
    assert result.stdout.decode().splitlines()[0] == "1 2-ü-/tmp"
    assert int(result.stdout.split()[-1]) < 12


def test_nothing_of_our_environment_is_passed_on(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    assert b"SECRET" not in vm.run(["env"]).stdout


@pytest.mark.parametrize("tty", [None, (24, 80)], ids=["pipes", "terminal"])
@pytest.mark.parametrize("directory", ["/", "/tmp"])
def test_no_signal_is_ignored_or_blocked(
    vm: VM, directory: str, tty: tuple[int, int] | None
) -> None:
    """Those that the C library keeps for itself neither."""
    program = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"]
    with vm.popen(program, cwd=directory, tty=tty) as process:
        lines = process.stdout.read().splitlines()
    assert lines == [b"SigBlk:\t0000000000000000", b"SigIgn:\t0000000000000000"]


def test_empty_input_ends_at_once(vm: VM) -> None:
    assert vm.run(["cat"], timeout=100).stdout == b""


def test_ten_megabytes_pass_unharmed(vm: VM) -> None:
    data = os.urandom(10_000_000)
    result = vm.run(["cat"], input=data)
    assert result.stdout == data


def test_the_guest_computes_right(vm: VM) -> None:
    data = os.urandom(64 << 20)
    digest = vm.run(["sha256sum"], input=data, timeout=350).stdout.split()[0].decode()
    assert digest == hashlib.sha256(data).hexdigest()


def test_streams_are_separate_and_live(vm: VM) -> None:
    script = "echo one; echo two >&2; read line; echo $line; exit 3"
    with vm.popen(["sh", "-c", script], stdin=PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"one\n"
        assert process.stderr.readline() == b"two\n"
        assert process.returncode is None
        process.stdin.write(b"three\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"three\n"
        assert process.wait(100) == 3


def test_stderr_into_stdout(vm: VM) -> None:
    with vm.popen(["sh", "-c", "echo out; echo err >&2"], stderr=STDOUT) as process:
        assert process.stderr is None
        assert sorted(process.stdout.read().split()) == [b"err", b"out"]


def test_a_reader_that_stops_reading(vm: VM) -> None:
    process = vm.popen(["yes"])
    assert process.stdout.read(10) == b"y\n" * 5
    process.close()
    assert process.wait(100) != 0


def test_background_children_do_not_hold_the_command(vm: VM) -> None:
    done = vm.run(["sh", "-c", "sleep 1000 & echo $!"], timeout=300)
    vm.run(["kill", done.stdout.strip().decode()], check=True)  # it is still there


def test_a_command_that_is_not_there(vm: VM) -> None:
    with pytest.raises(teuthis.CommandNotFound, match="no-such-program"):
        vm.run(["no-such-program"])
    with pytest.raises(teuthis.CommandNotFound, match="/nowhere"):
        vm.run(["true"], cwd="/nowhere")


def test_a_file_that_is_no_program(vm: VM) -> None:
    for path in ("/etc/passwd", "/tmp"):
        with pytest.raises(teuthis.CommandNotExecutable, match=path):
            vm.run([path])


def test_check(vm: VM) -> None:
    with pytest.raises(teuthis.CommandFailed, match="exit code 3") as caught:
        vm.run(["sh", "-c", "echo out; exit 3"], check=True)
    assert caught.value.result is not None
    assert caught.value.result.stdout == b"out\n"


def test_a_time_limit(vm: VM) -> None:
    for limit in (1, 10, 100):  # on a busy host it may not come to its first word in a second
        with pytest.raises(teuthis.CommandTimeout, match=f"time limit of {limit} s") as caught:
            vm.run(["sh", "-c", "echo begun; sleep 1000"], timeout=limit)
        assert caught.value.result is not None
        said = caught.value.result.stdout
        if said:
            break
    assert said == b"begun\n"
    assert isinstance(caught.value, TimeoutError)
    assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_a_flood_of_output_is_bounded(vm: VM) -> None:
    with pytest.raises(teuthis.OutputTooLarge, match="1000000 bytes") as caught:
        vm.run(["yes"], max_output=1_000_000, timeout=300)
    assert caught.value.result is not None
    assert 0 < len(caught.value.result.stdout) <= 1_000_000
    assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_a_slow_reader_loses_nothing(vm: VM) -> None:
    data = os.urandom(3_000_000)
    vm.write_file("/tmp/large", data)
    with vm.popen(["cat", "/tmp/large"]) as process:
        time.sleep(1)
        assert process.stdout.read() == data


def test_several_at_once(vm: VM) -> None:
    def echo(number: int) -> bytes:
        return vm.run(["sh", "-c", f"sleep 0.2; echo {number}; cat"], input=b"%d" % number).stdout

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(echo, range(16)))
    assert results == [b"%d\n%d" % (n, n) for n in range(16)]


def test_calls_from_any_thread(vm: VM) -> None:
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(vm.run(["echo", "x"]).stdout))
    thread.start()
    thread.join()
    assert results == [b"x\n"]


def test_flows_are_counted(vm: VM) -> None:
    before = vm.flows()
    vm.run(["echo", "counted"])
    after = vm.flows()
    for flow in ("agent.exec", "agent.stdout", "control.status"):
        assert after[flow].count > before[flow].count, flow
    assert before.keys() == after.keys()


def test_bad_arguments_say_so(vm: VM) -> None:
    with pytest.raises(teuthis.ConfigurationError, match=r"list of arguments"):
        vm.run("ls -l")
    with pytest.raises(teuthis.ConfigurationError, match="shorten"):
        vm.run(["echo", "x" * 200_000])
    with pytest.raises(teuthis.ConfigurationError):
        vm.run(["true"], timeout=0)
    with pytest.raises(teuthis.ConfigurationError):
        vm.run(["true"], cwd="tmp")


def test_a_guest_on_the_software_processor_maps_little_around_a_page() -> None:
    with teuthis.VM(processor="soft") as vm:
        assert b"debugfs" not in vm.run(["cat", "/proc/mounts"], check=True).stdout
        look = "mount -t debugfs none /sys/kernel/debug && cat /sys/kernel/debug/fault_around_bytes"
        assert vm.run(["sh", "-c", look], check=True).stdout == b"16384\n"
