"""A Python that waits in the guest: nobody must see a difference to a new one, but in time."""

import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import teuthis
from tests.guests.processes import run
from teuthis import PIPE, STDOUT, Result

IS_WARM = "import sys; print('xml.etree.ElementTree' in sys.modules)"
STATE = """
import faulthandler, gc, locale, os, resource, signal, sys, threading, time, warnings
print(sorted(globals().items()))
print(sys.argv, sys.orig_argv, sys.path, sys.executable, sys.prefix, sys.flags)
print(list(os.environ.items()), os.getcwd(), os.getppid(), os.nice(0), os.umask(0o22))
print(os.getpgrp() == os.getpid(), os.getsid(0), os.listdir("/proc/self/fd"))
print([signal.getsignal(n) for n in range(1, 32)], signal.pthread_sigmask(0, ()))
for name in ("stdin", "stdout", "stderr"):
    stream = getattr(sys, name)
    print(stream, stream is getattr(sys, f"__{name}__"), stream.errors, stream.line_buffering)
    print(stream.write_through, stream.newlines, stream.buffer, stream.fileno(), stream.isatty())
print(sys.warnoptions, warnings.filters, sys.excepthook, sys.dont_write_bytecode)
print([resource.getrlimit(n) for n in range(16)])
print(threading.current_thread(), threading.active_count(), gc.isenabled(), gc.get_threshold())
print(threading.main_thread().native_id == os.getpid(), faulthandler.is_enabled(), time.tzname)
print(locale.setlocale(locale.LC_ALL), sys.getfilesystemencoding(), sys.getrecursionlimit())
for name in ("cmdline", "environ", "comm", "oom_score_adj", "cgroup"):
    print(open(f"/proc/self/{name}").read())
lines = open("/proc/self/status").read().splitlines()
names = ("SigB", "SigI", "SigC", "Shd", "Cap", "NoNew", "Uid")
print([line for line in lines if line.startswith(names)])
"""
ENDS = {
    "return": "print('out'); import sys; print('err', file=sys.stderr)",
    "exit code": "import sys; sys.exit(3)",
    "exit words": "import sys; sys.exit('words')",
    "exit without": "raise SystemExit",
    "error": "def f():\n    return 1 / 0\nf()",
    "error chain": "try:\n    {}['x']\nexcept KeyError:\n    raise ValueError('words') from None",
    "interrupt": "raise KeyboardInterrupt",
    "syntax": "print(1)\n1 +* 2",
    "hook": "import sys; sys.excepthook = lambda *a: print('mine', a[0], a[2].tb_lineno); 1 / 0",
    "at exit": "import atexit, threading; atexit.register(print, 'late'); "
    "threading.Timer(0.1, print, ('thread',)).start(); print('main')",
    "left open": "f = open('/tmp/left', 'w'); f.write('unflushed')",
    "destructor": "import json\nclass A:\n    def __del__(self): print('gone', json.dumps([1]))\n"
    "a = A()\nb = [A()]; b.append(b)",
    "late destructor": "class A:\n    def __del__(self): import json\na = A()",
    "closed": "import os; os.close(1); print('lost')",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "aborted": "import os; os.abort()",
    "warning": "import warnings; warnings.warn('words'); assert '\\d'",
    "child": "import os, subprocess, sys; print(1, flush=True);"
    "subprocess.run([sys.executable, '-c', 'print(2)'], check=True)",
    "no child": "import os; os.wait()",
    "asyncio": "import asyncio; print(asyncio.run(asyncio.sleep(0.01, 7)))",
    "class": "import pickle\nclass A: pass\nprint(pickle.dumps(A()), A, A.__module__)",
}


@pytest.fixture(scope="module")
def vm() -> Iterator[teuthis.VM]:
    with teuthis.VM(image="debian", warm="python", processor="soft") as vm:
        vm.run(["mkdir", "/w"], check=True)
        vm.write_file("/w/state.py", STATE.encode())
        vm.write_file("/w/error.py", b"import sys\nprint(__file__)\nsys.stderr.write('e')\n1 / 0\n")
        vm.write_file("/w/warm.py", IS_WARM.encode())
        yield vm


def outcome(result: Result) -> tuple[object, ...]:
    """All of it but the time, and with no addresses and process ids."""
    output = (result.stdout, result.stderr)
    clean = [re.sub(rb"0x[0-9a-f]+|started \d+", b"N", text).splitlines() for text in output]
    return result.exit_code, result.signal, *clean


def alike(
    vm: teuthis.VM,
    *arguments: str,
    input: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> Result:
    """Runs a program on the Python that waits and on a new one: nobody must see a difference."""
    warm = vm.run(["python3", *arguments], input=input, env=env, cwd=cwd)
    # The agent sees `env`, and starts that.
    new = vm.run(["env", "python3", *arguments], input=input, env=env, cwd=cwd)
    assert outcome(warm) == outcome(new)
    return warm


def is_warm(vm: teuthis.VM, *arguments: str, env: Mapping[str, str] | None = None) -> bool:
    result = vm.run(["python3", *arguments, "-c", IS_WARM], env=env, check=True)
    return result.stdout == b"True\n"


def await_warm(vm: teuthis.VM, env: Mapping[str, str] | None = None) -> None:
    """On a slow host the agent may lose its patience with the next interpreter."""
    deadline = time.monotonic() + 100
    while not is_warm(vm, env=env):
        assert time.monotonic() < deadline


def kill_all(vm: teuthis.VM) -> None:
    """All that waits, and what that has just forked."""
    vm.run(["sh", "-c", "while pkill -9 warm-python; do sleep 0.02; done"], check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", STATE, "one", "", "-c", "grüße"),
        ("state.py", "one"),
        ("../w/./state.py",),
        ("-m", "state", "one"),
        ("-", "one"),
        (),
    ],
)
def test_a_program_finds_what_it_would_find(vm: teuthis.VM, arguments: tuple[str, ...]) -> None:
    env = {"A": "1 2", "ü": "ä", "TZ": "Asia/Tokyo", "PYTHONPATH": "/usr:lib"}
    result = alike(vm, *arguments, input=STATE.encode(), env=env, cwd="/w")
    assert result.exit_code == 0, result.stderr
    assert b"JST" in result.stdout


@pytest.mark.parametrize("name", ENDS)
def test_it_ends_as_it_would_end(vm: teuthis.VM, name: str) -> None:
    alike(vm, "-c", ENDS[name])
    if name == "left open":
        assert vm.read_file("/tmp/left") == b"unflushed"


@pytest.mark.parametrize(
    ("arguments", "input"),
    [
        (("error.py",), b""),
        (("-m", "error"), b""),
        (("-",), b"print(1)\n1 / 0"),
        ((), b"print(1)\n1 +* 2"),
        (("-m", "no.such.module"), b""),
        (("no-such-file.py",), b""),
        (("/w",), b""),
        (("-m", "json.tool"), b'{"a": 1}'),
        (("-c",), b""),
        (("-X", "utf8=0", "state.py"), b""),
        (("-IOOu", "-c", "import sys; print(sys.flags, __debug__)"), b""),
        (("-c", "import sys; print(sys.stdin.read())"), b"some\r\ninput"),
    ],
)
def test_ways_to_say_what_runs(vm: teuthis.VM, arguments: tuple[str, ...], input: bytes) -> None:
    alike(vm, *arguments, input=input, cwd="/w")


def test_which_programs_are_warm(vm: teuthis.VM) -> None:
    await_warm(vm)
    await_warm(vm, env={"LANG": "C.UTF-8", "PYTHONPATH": "/w"})
    for argv in (["python3.11", "/w/warm.py"], ["/usr/bin/python3", "-m", "warm"]):
        assert vm.run(argv, cwd="/w", check=True).stdout == b"True\n", argv
    assert vm.run(["python3"], input=IS_WARM.encode(), check=True).stdout == b"True\n"
    assert not is_warm(vm, "-u")
    assert not is_warm(vm, env={"LANG": "C"})
    with pytest.raises(teuthis.CommandNotFound, match=r"python3\.99"):
        vm.run(["python3.99"])
    with pytest.raises(teuthis.CommandNotFound, match="python"):
        vm.run(["python"])
    with pytest.raises(teuthis.CommandNotFound, match="/nowhere"):
        vm.run(["python3"], cwd="/nowhere")


def test_what_must_be_a_new_interpreter_is_one(vm: teuthis.VM) -> None:
    say = "import random, sys; print(random.__file__, sys.prefix, hash('a'), sys.flags)"
    vm.run(["mkdir", "-p", "/hidden/random", "/venv/bin"], check=True)
    vm.write_file("/hidden/say.py", say.encode())
    assert b"/usr/lib" in alike(vm, "/hidden/say.py", env={"PYTHONHASHSEED": "7"}).stdout
    vm.write_file("/hidden/random/__init__.py", b"")
    seed = {"PYTHONHASHSEED": "7"}
    assert b"/hidden" in alike(vm, "/hidden/say.py", env=seed).stdout
    assert b"/hidden" in alike(vm, "-c", say, env=seed | {"PYTHONPATH": "/hidden"}).stdout
    assert b"/hidden" in vm.run(["python3", "/hidden/say.py"], check=True).stdout
    assert b"/hidden" in vm.run(["python3", "-c", say], cwd="/hidden", check=True).stdout
    vm.run(["ln", "-s", "/usr/bin/python3", "/venv/bin/python3"], check=True)
    vm.write_file("/venv/pyvenv.cfg", b"home = /usr/bin\n")
    env = {"PATH": "/venv/bin:/usr/bin"}
    assert b" /venv " in vm.run(["python3", "-c", say], env=env, check=True).stdout
    (copy,) = vm.fork()
    with copy:
        path = "/usr/local/lib/python3.11/dist-packages/"
        copy.write_file(f"{path}package.py", b"")
        await_warm(copy)
        copy.write_file(f"{path}any.pth", b"import sys; sys.prefix = '/obeyed'\n")
        assert b"/obeyed" in copy.run(["python3", "-c", say], check=True).stdout


def test_signals_and_time_limits(vm: teuthis.VM) -> None:
    script = (
        "import os, time\n"
        "try: print('started', os.getpid(), flush=True); time.sleep(1000)\n"
        "except KeyboardInterrupt: os.write(1, b'interrupted\\n'); os._exit(5)"
    )
    with vm.popen(["python3", "-c", script]) as process:
        assert process.stdout.readline() == b"started %d\n" % process.pid
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"interrupted\n"
        assert process.wait(100) == 5
    with vm.popen(["python3", "-c", script]) as process:
        assert process.stdout.readline() == b"started %d\n" % process.pid
        process.terminate()
        assert process.wait(100) == -signal.SIGTERM
    for limit in (5, 100):  # on a busy host it may not come to its first word in the first
        with pytest.raises(teuthis.CommandTimeout) as caught:
            vm.run(["python3", "-c", script], timeout=limit)
        assert caught.value.result is not None
        said = caught.value.result.stdout
        if said:
            break
    assert said.startswith(b"started")


def test_children_end_with_a_program_that_is_killed(vm: teuthis.VM) -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '999']).pid, flush=True); input()"
    with vm.popen(["python3", "-c", script], stdin=PIPE) as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait(100)
    deadline = time.monotonic() + 100
    while b"sleep" in vm.run(["ps", "-o", "comm=", "-p", str(child)]).stdout:
        assert time.monotonic() < deadline


def test_on_a_terminal(vm: teuthis.VM) -> None:
    script = (
        "import os, sys, time\n"
        "print(sys.stdin.isatty(), sys.stdout.line_buffering, os.ttyname(1),"
        "os.getsid(0) == os.getpgrp() == os.tcgetpgrp(0) == os.getpid(), os.get_terminal_size())\n"
        "try:\n print(repr(input('? '))); print('? ', end='', flush=True)\n"
        # Not in input(): Python forgets a ^C that comes just before it waits for a line.
        " while True: time.sleep(0.01)\n"
        "except KeyboardInterrupt: print('^C')\n"
    )
    shown = []
    for words in (["python3", "-c", script], ["env", "python3", "-c", script]):
        with vm.popen(words, stdin=PIPE, tty=(33, 132)) as process:
            assert process.stdin is not None
            seen = process.stdout.readline()
            for typed in (b"words\n", b"\x03"):
                while not seen.endswith(b"? "):
                    seen += process.stdout.read(1)
                process.stdin.write(typed)
                process.stdin.flush()
                seen += process.stdout.read(1)
            shown.append(seen + process.stdout.read())
            assert process.wait(100) == 0
    assert shown[0] == shown[1]
    assert b"True True /dev/pts/" in shown[0]
    assert b"^C" in shown[0]


def test_the_prompt_on_a_terminal(vm: teuthis.VM) -> None:
    with vm.popen(["python3"], stdin=PIPE, tty=(24, 80)) as process:
        assert process.stdin is not None
        process.stdin.write(b"print(6 * 7)\nexit(4)\n")
        process.stdin.flush()
        assert b"\n42\r\n" in process.stdout.read()
        assert process.wait(100) == 4


def test_several_at_once(vm: teuthis.VM) -> None:
    def program(number: int) -> bytes:
        script = f"{IS_WARM}; import time; time.sleep(0.2); print({number}, sys.stdin.read())"
        return vm.run(["python3", "-c", script], input=b"%d" % -number, check=True).stdout

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(program, range(1, 13)))
    assert [result.split()[1:] for result in results] == [
        [b"%d" % number, b"%d" % -number] for number in range(1, 13)
    ]
    assert any(b"True" in result for result in results)


def test_streams_in_one(vm: teuthis.VM) -> None:
    script = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    with vm.popen(["python3", "-c", script], stderr=STDOUT) as process:
        assert process.stdout.read() == b"out\nerr\n"


def test_clones_repeat_no_random_numbers(vm: teuthis.VM) -> None:
    script = (
        "import os, random, secrets, ssl, tempfile, uuid\n"
        "print(random.random(), secrets.token_hex(), os.urandom(9), ssl.RAND_bytes(9),"
        "tempfile.mktemp(), uuid.uuid4(), uuid.uuid1(), sep='\\n')"
    )
    clones = [teuthis.VM(image="debian", warm="python", processor="soft") for _ in range(2)]
    clones += vm.fork(2)
    try:
        draws = [
            each.run(["python3", "-c", f"{IS_WARM}\n{script}"], check=True).stdout.splitlines()
            for each in (*clones, vm, vm)
        ]
        assert [draw.pop(0) for draw in draws] == [b"True"] * 6
        for drawn in zip(*draws, strict=True):
            assert len(set(drawn)) == 6, drawn
        # Hashes are seeded when an interpreter starts; who must have others asks for them.
        asked = {"PYTHONHASHSEED": "random"}
        seeded = [each.run(["python3", "-c", "print(hash('a'))"], env=asked) for each in clones]
        assert len({result.stdout for result in seeded}) == 4
        now = float(clones[0].run(["python3", "-c", "import time; print(time.time())"]).stdout)
        assert abs(now - time.time()) < 60
    finally:
        for each in clones:
            each.close()


def test_a_snapshot_of_it(vm: teuthis.VM, tmp_path: Path) -> None:
    vm.snapshot(tmp_path / "saved")
    with teuthis.VM.restore(tmp_path / "saved") as restored:
        await_warm(restored)
        await_warm(restored)


def test_what_it_is_made_of_may_be_killed(vm: teuthis.VM) -> None:
    (copy,) = vm.fork()
    with copy:
        # One that waits is replaced by its server.
        copy.run(["sh", "-c", "kill -9 $(pgrep -n warm-python)"], check=True)
        await_warm(copy)
        kill_all(copy)
        assert not is_warm(copy)


def test_whoever_else_answers_harms_only_time(vm: teuthis.VM) -> None:
    false = (
        "import os, socket, struct, sys\n"
        "os.unlink('/run/teuthis-python')\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.bind('/run/teuthis-python'); s.listen(); print('listens', flush=True)\n"
        "kept = []\n"
        "while True:\n"
        "    kept.append(s.accept()[0]); kept[-1].send(eval(sys.argv[1]))\n"
    )
    (copy,) = vm.fork()
    with copy:
        kill_all(copy)
        # A child of the shell's, not of the agent's; init; no number; nobody.
        for answer in ("struct.pack('<i', os.getpid())", "b'\\1\\0\\0\\0'", "b'xx'", "bytes(4)"):
            argv = ["sh", "-c", 'python3 -c "$0" "$1"; :', false, answer]
            with copy.popen(argv, stderr=STDOUT) as process:
                assert process.stdout.readline() == b"listens\n", answer
                assert not is_warm(copy), answer
                process.kill()


def test_memory_that_runs_out(vm: teuthis.VM) -> None:
    # The kernel is asked to kill one, as it would do then, and prefers this one.
    script = (
        "import time; open('/proc/self/oom_score_adj', 'w').write('1000')\n"
        "with open('/proc/sysrq-trigger', 'w') as file: file.write('f')\n"
        "time.sleep(1000)"
    )
    with pytest.raises(teuthis.CommandOutOfMemory):
        vm.run(["python3", "-c", script])


def test_another_user_has_an_interpreter_of_its_own(vm: teuthis.VM) -> None:
    script = "import os; print(os.getuid(), os.getgroups(), os.environ['HOME'])"
    result = vm.run(["python3", "-c", script], user="nobody", check=True)
    assert result.stdout == b"65534 [65534] /nonexistent\n"
    assert vm.run(["python3", "-c", IS_WARM], user="nobody").stdout == b"False\n"
    assert is_warm(vm)


def test_a_pool() -> None:
    with teuthis.Pool(1, image="debian", warm="python") as pool, pool.take(100) as vm:
        assert is_warm(vm)


def test_a_vm_that_boots() -> None:
    with teuthis.VM(image="debian", warm="python", cold=True) as vm:
        assert is_warm(vm)


def test_without_python() -> None:
    with pytest.raises(teuthis.ConfigurationError, match="'tiny' has no python3"):
        teuthis.VM(warm="python")
    with pytest.raises(teuthis.ConfigurationError, match="say 'python'"):
        teuthis.VM(warm="perl")
    with pytest.raises(teuthis.ConfigurationError, match="say 'python'"):
        teuthis.Pool(warm="perl")


def test_the_command() -> None:
    words = ("--image", "debian", "--warm", "python", "--", "python3", "-c", IS_WARM)
    done = run("run", *words)
    assert (done.returncode, done.stdout) == (0, b"True\n"), done.stderr
    done = run("run", "--restore", "nothing", *words[2:])
    assert done.returncode == 125
    assert b"--restore" in done.stderr


def test_nothing_of_this_process_is_in_it(vm: teuthis.VM) -> None:
    assert os.environ.keys() - {"HOME", "LANG", "PATH"}
    script = "import os; print(sorted(os.environ))"
    assert alike(vm, "-c", script).stdout == b"['HOME', 'LANG', 'PATH']\n"
