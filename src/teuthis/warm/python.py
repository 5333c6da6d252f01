"""The Python that waits in a guest: it has started before, and each program is a fork of it.

This runs in the guest, on the guest's own interpreter (3.9 or later), which gets it as its stdin.
There are three kinds of processes:

- the server imports what programs usually import, and makes interpreters that wait, one at a time;
- an interpreter that waits is a child of the agent, which learns its pid, says what is to run on
  which streams (`guest/src/warm.rs`), and from then on treats it as a program it has started;
- a program. Where it would differ from what a new interpreter makes of the same words (an option,
  a variable, a file that is there), it becomes a new interpreter instead.

What a program can still see of all this is said in docs/snapshots.md.
"""
# ruff: noqa: E402

from __future__ import annotations

import sys

_new = set(sys.modules)
"""What any interpreter has imported when it begins with a program."""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib.machinery
import io
import mmap
import os
import pkgutil
import random
import runpy
import signal
import site
import socket
import struct
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

Program = Callable[[], object]
Changes = dict[str, object]
"""Paths, and what changes when they do."""

_SOCKET = "/run/teuthis-python"
_MAX_REQUEST = 1 << 20
_PATIENCE = 0.5
"""Seconds until there is another interpreter in place of one that was killed."""
_USUAL = (
    "argparse array ast asyncio base64 bisect bz2 calendar collections concurrent.futures "
    "configparser contextvars copy csv dataclasses datetime decimal difflib email.message enum "
    "fnmatch fractions functools getpass glob gzip hashlib heapq hmac html http.client inspect "
    "ipaddress itertools json locale logging lzma math numbers operator pathlib pickle platform "
    "pprint queue re secrets select selectors shlex shutil sqlite3 stat statistics string "
    "subprocess tarfile tempfile textwrap threading traceback typing unicodedata unittest "
    "urllib.request uuid weakref xml.etree.ElementTree zipfile zlib"
)
"""What programs import, but nothing that keeps random numbers it drew (`multiprocessing` does)."""
_OBEYED_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "LOCPATH", "MALLOC_", "GLIBC_", "OPENSSL_")
"""How variables begin that a new interpreter obeys, and a running one does not."""
_LOCAL = ("sitecustomize", "usercustomize")
_PR_SET_NAME, _PR_SET_MM = 15, 35
_ARG_START, _ARG_END, _ENV_START, _ENV_END = 8, 9, 10, 11

_libc = ctypes.CDLL(None)
_keep = ctypes.pythonapi.Py_IncRef
_environment = dict(os.environb)
_path = sys.path[1:]
_main = dict(vars(sys.modules["__main__"]))


class Unlike(Exception):
    """A new interpreter would do otherwise."""


class Request:
    """What the agent wants to have run."""

    def __init__(self, message: bytes, streams: list[int]) -> None:
        self.streams = streams
        terminal, count, self.directory, *words = message.split(b"\0")
        self.terminal = terminal == b"1"
        self.argv = words[: int(count)]
        self.environment = dict(word.split(b"=", 1) for word in words[int(count) :])


# ---- the server --------------------------------------------------------------------------------


def serve() -> Program | None:
    """Returns in each process that has something to run, with what that is."""
    started, told = socket.socketpair()
    if os.fork():
        told.close()
        os._exit(0 if started.recv(1) else 1)
    started.close()
    os.setpgid(0, 0)
    _libc.prctl(_PR_SET_NAME, b"warm-python", 0, 0, 0)  # `killall python3` means others
    sys.path[:] = _path
    for name in _USUAL.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_SOCKET)
    listener.bind(_SOCKET)
    listener.listen(64)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)
    os.nice(10)  # a program that has just begun comes before the next one's interpreter
    gc.collect()
    gc.freeze()
    first = True
    while True:
        interpreter, server = socket.socketpair()
        parent = os.fork()
        if not parent:
            if os.fork():
                os._exit(0)  # which leaves the interpreter to the agent
            interpreter.close()
            told.close()
            if first:  # a template is to have all of it
                own_memory()
            return wait(listener, server)
        server.close()
        os.waitpid(parent, 0)
        interpreter.send(b"!")
        waits = interpreter.recv(1)
        if first:
            told.send(waits)
            told.close()
        first = False
        if not interpreter.recv(1):
            time.sleep(_PATIENCE)
        interpreter.close()


def wait(listener: socket.socket, server: socket.socket) -> Program | None:
    """Waits for the agent."""
    group = os.getpgrp()
    server.recv(1)
    os.setpgid(0, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    server.send(b"!")
    message = b""
    while not message:  # as long as the agent has no patience
        agent, _ = listener.accept()
        with contextlib.suppress(ConnectionError):
            agent.send(struct.pack("<i", os.getpid()))
            message, streams, *_ = socket.recv_fds(agent, _MAX_REQUEST, 3, socket.MSG_CMSG_CLOEXEC)
    listener.close()
    server.send(b"!")
    server.close()
    return begin(Request(message, streams), group, agent)


def own_memory() -> None:
    """Copies what is shared with the server now: a program would do so page by page."""
    with open("/proc/self/maps") as maps:
        places = [line.split()[0].split("-") for line in maps if " rw-p " in line]
    for start, end in places:
        for page in range(int(start, 16), int(end, 16), mmap.PAGESIZE):
            ctypes.memmove(page, page, 1)


# ---- the program -------------------------------------------------------------------------------


def begin(request: Request, group: int, agent: socket.socket) -> Program | None:
    """Makes this process what the agent would have started; returns what it is to run."""
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    if request.terminal:
        os.setpgid(0, group)  # who leads a group cannot have a session
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        os.chdir(request.directory)
        with contextlib.suppress(Exception):
            program = become(request)
            agent.close()
            return program
        renew(request)
    except OSError as error:
        agent.send(struct.pack("<i", error.errno))
        os._exit(127)


def renew(request: Request) -> NoReturn:
    """Becomes a new interpreter, or whatever its words say."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which are ignored in Python
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(request.argv[0], request.argv, request.environment)


def become(request: Request) -> Program | None:
    """Makes this the interpreter that was asked for. Raises `Unlike` if it cannot be.

    Returns what is to run; None: what comes on stdin.
    """
    # A frozen one would live on after the program.
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main).update(_main)
    if "__annotations__" in _main:
        main.__annotations__ = {}
    executable = find(request)
    check_variables(request.environment)
    arguments = [os.fsdecode(argument) for argument in request.argv]
    kind, *rest = arguments[1:] or [""]
    argv, first = [kind, *rest], ""
    program: Program | None = None
    if kind == "-c" and rest:
        argv = ["-c", *rest[1:]]
        program = partial(exec, compiled(rest[0], "<string>"), vars(main))
    elif kind == "-m" and rest:
        argv, first = ["-m", *rest[1:]], os.getcwd()
        program = partial(module, rest[0])
        if "." in rest[0] and rest[0] in sys.modules:
            raise Unlike  # there is a warning for that
    elif kind and not kind.startswith("-"):
        first = os.path.dirname(os.path.realpath(kind))
        program = script(kind)
    elif kind not in ("", "-") or os.isatty(0):
        raise Unlike
    added = places(request.environment.get(b"PYTHONPATH", b""))
    for entry in [first or os.getcwd(), *added]:
        check_directory(entry)
    sys.path[:] = [first, *added, *(entry for entry in _path if entry not in added)]
    sys.argv[:] = argv
    sys.orig_argv = arguments
    sys.executable = sys._base_executable = executable  # type: ignore[attr-defined]
    os.environ.clear()
    os.environb.update(request.environment)
    show(request)
    open_streams()
    threading.main_thread()._native_id = os.getpid()  # type: ignore[attr-defined]
    random.seed()
    time.tzset()
    atexit.register(leave_alone, sys.modules.keys() - {"__main__", "builtins", "sys"})
    return program


def places(path: bytes) -> list[str]:
    """The directories that a PYTHONPATH names, as `site` would have them."""
    entries = os.fsdecode(path).split(":") if path else []
    return list(dict.fromkeys(map(os.path.abspath, entries)))


def find(request: Request) -> str:
    """The path of the interpreter that is asked for, which must be this one."""
    name = os.fsdecode(request.argv[0])
    path = os.fsdecode(request.environment.get(b"PATH", b""))
    for place in [""] if "/" in name else path.split(":"):
        candidate = os.path.join(place, name)
        if os.access(candidate, os.X_OK):
            # In another directory it may belong to a virtual environment.
            same = os.path.dirname(candidate) == os.path.dirname(sys.executable)
            if same and os.path.samefile(candidate, "/proc/self/exe"):
                return candidate
            break
    raise Unlike


def check_variables(environment: dict[bytes, bytes]) -> None:
    """Of what an interpreter looks at when it starts, all must be as it was when this one did."""
    obeyed = {
        name
        for name in (*environment, *_environment)
        if os.fsdecode(name).startswith(_OBEYED_AT_START) and name != b"PYTHONPATH"
    }
    if any(environment.get(name) != _environment.get(name) for name in obeyed):
        raise Unlike
    home = os.fsdecode(environment.get(b"HOME", b""))
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if os.path.isdir(os.path.join(home, ".local/lib", version, "site-packages")):
        raise Unlike
    if of_this_site(*_site)[1] != _site[1]:
        raise Unlike


def of_this_site(known_directories: Changes, known_files: Changes) -> tuple[Changes, Changes]:
    """What `site` obeys when an interpreter starts: directories, and files that matter in them.

    Each with the time of its last change. A directory that is as known has the files that are.
    """
    directories: Changes = {}
    files: Changes = {}
    for directory in {*site.getsitepackages(), *_path}:
        directories[directory] = changed = changed_at(directory)
        if changed is None:
            continue
        if changed == known_directories.get(directory):
            paths = [path for path in known_files if os.path.dirname(path) == directory]
        else:
            paths = [os.path.join(directory, name) for name in os.listdir(directory)]
        for path in paths:
            if path.endswith(".pth") or os.path.basename(path).startswith(_LOCAL):
                files[path] = changed_at(path)
    return directories, files


def changed_at(path: str) -> object:
    """None if there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def check_directory(directory: str) -> None:
    """Nothing in a directory that is searched first may hide what has been imported already."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    except OSError:
        raise Unlike from None
    imported = {name.partition(".")[0] for name in sys.modules.keys() - _new}
    for name in names:
        stem, dot, suffix = name.partition(".")
        if stem not in imported and stem not in _LOCAL:
            continue
        if dot + suffix in importlib.machinery.all_suffixes() or os.path.exists(
            os.path.join(directory, name, "__init__.py")
        ):
            raise Unlike


def compiled(source: str | bytes, name: str) -> CodeType:
    """The code. What a compiler would complain about, a new interpreter is to complain about."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            code: CodeType = compile(source, name, "exec", dont_inherit=True)
            return code
    except Exception:
        raise Unlike from None


def script(name: str) -> Program:
    """The program in a file."""
    if name.endswith(".pyc") or not os.path.isfile(name) or pkgutil.get_importer(name):
        raise Unlike
    path = os.path.join(os.getcwd(), name)
    with io.open_code(path) as file:
        code = compiled(file.read(), path)
    variables = vars(sys.modules["__main__"])
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    variables.update(__file__=path, __cached__=None, __loader__=loader)
    return partial(exec, code, variables)


def module(name: str) -> None:
    """Runs a module as an interpreter does."""
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def standard_input() -> Program:
    """The program on stdin."""
    variables = vars(sys.modules["__main__"])
    variables.update(__file__="<stdin>", __cached__=None)
    source = sys.stdin.buffer.read()
    return partial(exec, compile(source, "<stdin>", "exec", dont_inherit=True), variables)


def show(request: Request) -> None:
    """Lets `ps` and whoever else asks the kernel see the program's words and variables."""
    words = b"".join(word + b"\0" for word in request.argv)
    variables = b"".join(b"%b=%b\0" % each for each in request.environment.items())
    text = ctypes.create_string_buffer(words + variables)
    _keep(ctypes.py_object(text))
    start = ctypes.addressof(text)
    end = start + len(words)
    for what, place in (
        (_ARG_START, start),
        (_ARG_END, end),
        (_ENV_START, end),
        (_ENV_END, end + len(variables)),
    ):
        _libc.prctl(_PR_SET_MM, what, ctypes.c_ulong(place), 0, 0)
    _libc.prctl(_PR_SET_NAME, os.path.basename(request.argv[0]), 0, 0, 0)


def open_streams() -> None:
    """Standard streams as an interpreter makes them when it starts."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode = "w" if number else "r"
        old = getattr(sys, name)
        whole = old.write_through
        buffer: Any = open(number, mode + "b", 0 if whole else -1, closefd=False)
        raw = buffer if whole else buffer.raw
        raw.name = f"<{name}>"
        lines = not whole and (raw.isatty() or number == 2)
        stream: Any = io.TextIOWrapper(buffer, old.encoding, old.errors, "\n", lines, whole)
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def leave_alone(names: Iterable[str]) -> None:
    """Does not let modules be taken apart at a program's end: memory would be copied for it."""
    modules = [sys.modules.pop(name, None) for name in names]
    _keep(ctypes.py_object(modules))


def show_exception(
    hook: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    kind: type[BaseException],
    value: BaseException,
    trace: TracebackType | None,
) -> None:
    """Shows a program's last exception, without the frames below the program's."""
    sys.excepthook = hook
    while trace and (trace.tb_frame.f_back is None or trace.tb_frame.f_globals is globals()):
        trace = trace.tb_next
    hook(kind, value.with_traceback(trace), trace)


_site = of_this_site({}, {})
_program = serve()
try:
    _programs = [_program or standard_input()]
    del _program
    _programs.pop()()  # nothing here may hold its variables when it has ended
except BaseException:
    sys.excepthook = partial(show_exception, sys.excepthook)
    raise
