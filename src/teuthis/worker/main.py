"""The worker process of one VM. Read from top to bottom to see what it holds at each point."""

import os
import resource
import socket
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from teuthis.flows import Counters
from teuthis.protocol import WorkerConfig
from teuthis.worker.console import Console
from teuthis.worker.control import Control, LifelineCut
from teuthis.worker.doorbells import Doorbells
from teuthis.worker.link import Link
from teuthis.worker.loop import Loop
from teuthis.worker.machine import Machine
from teuthis.worker.memory import GuestMemory

_USAGE = 64
_LARGEST_DESCRIPTOR = 1 << 16


def main(arguments: Sequence[str]) -> int:
    """Serves one VM; 0 when it ended in any orderly way."""
    # 1. Read what we were given: the numbers of our descriptors.
    try:
        config = _read_config(arguments)
    except (ValueError, OSError):
        return _USAGE

    # 2. Drop everything else: other descriptors, the environment, the working directory, core
    #    dumps. From here on there is no way to a file, a program or a network.
    _close_others(config)
    os.environ.clear()
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    # 3. Map guest RAM and the shared pages; their descriptors are of no more use.
    memory = GuestMemory(config.memory, config.memory_size)
    counters = Counters(config.counters)
    doorbells = Doorbells(config.doorbells, config.to_worker, config.to_hypervisor, counters)
    for mapped in (config.memory, config.counters, config.doorbells):
        os.close(mapped)

    # 4. Put the machine together around what is left: four descriptors of this VM's own.
    loop = Loop()
    link = Link(socket.socket(fileno=config.link), counters, doorbells.attend)
    control = Control(socket.socket(fileno=config.control), counters)
    console = Console(loop, config.console, counters)
    machine = Machine(memory, link, doorbells, control, console, loop, counters)

    # 5. Serve the guest until it, the hypervisor or the client ends.
    with suppress(LifelineCut):
        machine.run()
    return 0


def _read_config(arguments: Sequence[str]) -> WorkerConfig:
    """The configuration behind `--config-fd N`. Raises `ValueError`, `OSError`."""
    if len(arguments) != 2 or arguments[0] != "--config-fd":
        raise ValueError("usage: python -m teuthis.worker --config-fd N")
    descriptor = int(arguments[1])
    with open(descriptor, "rb") as file:
        if file.seekable():
            file.seek(0)
        return msgspec.json.decode(file.read(4096), type=WorkerConfig)


def _close_others(config: WorkerConfig) -> None:
    """Closes every descriptor that is not the VM's own; 0 to 2 are /dev/null."""
    start = 3
    for keep in sorted(
        value for name, value in msgspec.structs.asdict(config).items() if name != "memory_size"
    ):
        os.closerange(start, keep)
        start = keep + 1
    os.closerange(start, _LARGEST_DESCRIPTOR)
