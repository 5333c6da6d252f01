"""The earliest start of a zygote: a command's very first act, with nothing loaded that takes time.

So it can load what workers need while the command loads what it needs itself. `zygote` takes it
over. Only for a program's main thread before there is another one: the kernel ends the zygote with
the thread that started it, and whatever else is open here and inherited stays open in the zygote
until it has loaded itself.
"""

import _socket  # `socket` takes longer to be loaded than Python to start
import os
import sys

PROGRAM = (sys.executable, "-I", "-m", "teuthis.worker")
_REQUESTS = 3

_hatched: tuple[int, int] | None = None


def start() -> None:
    """Starts the zygote of this process, unless something is in the way: then `zygote` will say."""
    global _hatched
    ours, given = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    if min(ours.fileno(), given.fileno()) < _REQUESTS:
        return  # somebody closed our own standard streams
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, given.fileno(), _REQUESTS),
    ]
    if not os.environ.get("TEUTHIS_DEBUG"):
        actions.append((os.POSIX_SPAWN_DUP2, 0, 2))
    command = [*PROGRAM, "--requests-fd", str(_REQUESTS)]
    try:
        pid = os.posix_spawn(command[0], command, {}, file_actions=actions, setsid=True)
    except OSError:
        return
    _hatched = pid, ours.detach()


def take() -> tuple[int, int] | None:
    """The zygote that was started, once: its process id, and our end of its socket."""
    global _hatched
    taken, _hatched = _hatched, None
    return taken
