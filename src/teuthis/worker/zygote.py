"""The zygote: has loaded all that a worker is made of, and becomes one whenever it is asked.

Read it from top to bottom to see what a worker is born with. The zygote itself serves no guest: it
reads nothing but requests of its owner, and all that it hands to a worker is a socket, over which
the owner then gives it its VM. It has one thread.

A worker is born by `clone` with CLONE_PARENT, as a child of the zygote's owner: so the owner waits
for it, and `parent-death` means the owner, not the zygote.
"""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from teuthis.errors import MissingWall
from teuthis.jail import capabilities, walls
from teuthis.jail.kernel import prctl
from teuthis.jail.system_calls import NUMBERS
from teuthis.protocol import Birth
from teuthis.worker import main as worker
from teuthis.worker import sockets
from teuthis.worker.sockets import socket

_USAGE: Final = 64
_DEFECT: Final = 70
_MAX_REQUEST: Final = 4096
_PR_SET_NAME: Final = 15
_CLONE_PARENT: Final = 0x8000
_CLONE_PIDFD: Final = 0x1000

_decoder: Final = msgspec.json.Decoder(Birth)
# Unlike `CDLL` it keeps the interpreter's lock: the child has it as its parent had.
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def main(arguments: Sequence[str]) -> int:
    """Gives birth to workers until its owner has gone."""
    # 1. What we were given: one socket. Nothing else is open, no directory is held, the environment
    #    is empty, and we die with our owner.
    if len(arguments) != 2 or arguments[0] != "--requests-fd":
        return _USAGE
    requests = socket(fileno=int(arguments[1]))
    os.closerange(3, requests.fileno())
    os.closerange(requests.fileno() + 1, 1 << 30)
    os.environ.clear()
    os.chdir("/")
    capabilities.die_with_parent()
    capabilities.undumpable()
    _name(b"teuthis-zygote")

    # 2. What is loaded by now is shared by all workers; what nobody frees nobody copies.
    gc.freeze()
    gc.enable()

    # 3. One request, one worker.
    while True:
        request, descriptors = sockets.receive(requests, _MAX_REQUEST, 1)
        if not descriptors:
            return 0
        owner = socket(fileno=descriptors[0])
        pid, pidfd = _clone()
        if pid == 0:
            _become_worker(request, owner)
        sockets.send(owner, pid.to_bytes(4, "little", signed=True), [pidfd][: pid > 0])
        owner.close()
        if pid > 0:
            os.close(pidfd)


def _clone() -> tuple[int, int]:
    """Forks; returns the child's id and pidfd, or 0 in the child, or a negative error."""
    pidfd = ctypes.c_int(-1)
    flags = _CLONE_PARENT | _CLONE_PIDFD | signal.SIGCHLD
    words = (NUMBERS["clone"], flags, 0)
    pid = _libc.syscall(*map(ctypes.c_long, words), ctypes.byref(pidfd), None, None)
    return (pid, pidfd.value) if pid >= 0 else (-ctypes.get_errno(), -1)


def _become_worker(request: bytes, owner: socket) -> None:
    """Never returns."""
    status = _DEFECT
    try:
        os.setsid()
        _name(b"teuthis-worker")
        status = worker.main(_decoder.decode(request), owner)
    except MissingWall as missing:
        status = walls.exit_status(missing.name)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _name(name: bytes) -> None:
    """What `ps` and `top` call this process."""
    buffer = ctypes.create_string_buffer(name, 16)
    prctl(_PR_SET_NAME, ctypes.addressof(buffer))
