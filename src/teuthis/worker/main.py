"""The worker process of one VM. Read from top to bottom to see what it holds at each point."""

import os
from contextlib import suppress
from typing import Final

import msgspec

from teuthis.flows import Counters
from teuthis.jail import walls
from teuthis.jail import worker as jail
from teuthis.protocol import MAX_CONFIG, MAX_DESCRIPTORS, Birth, WorkerConfig
from teuthis.worker import sockets
from teuthis.worker.console import Console
from teuthis.worker.control import Control, LifelineCut
from teuthis.worker.devices.storage.disks import disk_backend
from teuthis.worker.doorbells import Doorbells
from teuthis.worker.link import Link
from teuthis.worker.loop import Loop
from teuthis.worker.machine import Machine
from teuthis.worker.memory import GuestMemory
from teuthis.worker.sockets import socket
from teuthis.worker.template import Template

_decoder: Final = msgspec.json.Decoder(WorkerConfig)


def main(birth: Birth, owner: socket) -> int:
    """Serves one VM; 0 when it ended in any orderly way. Raises `MissingWall`."""
    # 1. We were born with a socket to our owner (`zygote.py`). Drop everything else that somebody
    #    may have left, and leave: from here on no path, no network, no other process, no privilege.
    #    All modules are loaded by now.
    walls.enter(jail.unborn(birth, owner.fileno()), walls.FIRST)
    os.environ.clear()

    # 2. Take our VM: its configuration, and its descriptors. An owner that has none for us goes.
    document, descriptors = sockets.receive(owner, MAX_CONFIG, MAX_DESCRIPTORS)
    owner.close()
    if not document:
        return 0
    config = _decoder.decode(document).renumbered(descriptors)

    # 3. Map guest RAM and the shared pages; their descriptors are of no more use. A restored VM has
    #    a state to go on from: its bytes are read here and judged behind the door.
    saved, news, template = None, "", None
    if config.saved is not None:
        saved, news = _read_all(config.saved.state), config.saved.news
        if (source := config.saved.template) is not None:
            template = Template(source.memory, source.pages, config.memory_size)
            for mapped in source.descriptors():
                os.close(mapped)
    memory = GuestMemory(config.memory, config.memory_size, template)
    counters = Counters(config.counters)
    doorbells = Doorbells(config.doorbells, config.to_worker, config.to_hypervisor, counters)
    for mapped in (config.memory, config.counters, config.doorbells):
        os.close(mapped)

    # 4. Put the machine together around what is left: four descriptors of this VM's own, and the
    #    files of its disks.
    loop = Loop()
    link = Link(socket(fileno=config.link), counters, doorbells.attend)
    control = Control(socket(fileno=config.control), counters)
    console = Console(loop, config.console, counters)
    disks = [disk_backend(disk) for disk in config.disks]
    machine = Machine(
        memory,
        link,
        doorbells,
        control,
        console,
        loop,
        counters,
        disks,
        processors=config.processors,
        agent=config.agent,
        lockstep=config.lockstep,
        saved=saved,
        news=news,
    )
    if config.network is not None:
        machine.add_network(config.network)

    # 5. The door is locked: what is left are the 17 system calls that serving takes (21 with
    #    disks).
    epolls = (loop.fileno(), machine.few.fileno())
    calls = jail.system_calls(epolls, config.link, config.control, config.disks)
    walls.enter(jail.worker(config, birth, calls), walls.REST)

    # 6. Only now read what a guest may have made. Serve it until it, the hypervisor or the client
    #    ends; nothing has to be, or can be, taken down piece by piece.
    with suppress(LifelineCut):
        machine.run()
    os._exit(0)


def _read_all(descriptor: int) -> bytes:
    """What a memory file holds, from its start; closes it."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
