"""Starts the two processes of one VM, each with exactly the descriptors that are its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from teuthis import programs
from teuthis.flows import FLOWS, Counters, counters_size
from teuthis.protocol import SavedMachine, Template, WorkerConfig
from teuthis.root import generation
from teuthis.root.console import Console, Sink
from teuthis.root.descriptors import Descriptors
from teuthis.root.processor import Processor, open_device
from teuthis.root.reserved import Reserved
from teuthis.root.saved import Memory, Saved, SavedDisk
from teuthis.root.spawn import Child

if TYPE_CHECKING:
    from teuthis.root.disks import Disk, OpenDisk
    from teuthis.root.loader import BootState
    from teuthis.root.network import Attachment, Wanted
    from teuthis.root.recording import Writer

_DOORBELLS_SIZE: Final = FLOWS["doorbell.to-worker"].values["page_bytes"]

Load = Callable[[int, int, str], "BootState"]
"""Puts what the guest starts with into a memory file: `load(descriptor, size, arguments)`.

The arguments are those of the kernel's command line that are known only now.
"""


class Processes(msgspec.Struct, frozen=True):
    """What the root side holds of a running VM; `held.close()` kills and closes all of it.

    Attributes:
        counters: the counters of the root side, the worker, the hypervisor and the switch.
        counter_pages: the descriptors behind them.
        recording: takes what the hypervisor records, if it does.
    """

    worker: Child
    hypervisor: Child
    control: socket.socket
    counters: tuple[Counters, ...]
    counter_pages: tuple[int, ...]
    memory: Memory
    console: Console
    held: Descriptors
    disks: tuple[OpenDisk, ...] = ()
    attached: Attachment | None = None
    recording: Writer | None = None


Start = Load | Saved
"""What a VM starts from: a kernel, or a saved machine."""


def launch(
    reserved: Reserved,
    start: Start,
    sink: Sink | None,
    disks: Sequence[Disk | SavedDisk] = (),
    network: Wanted | None = None,
    *,
    agent: bool = True,
    processor: Processor = "soft",
    record: str | None = None,
) -> Processes:
    """Makes the memory and the channels of a VM, loads its memory, starts its two processes.

    With `record`, the name of a file, guest and worker run in turns and leave a recording.

    The worker has been asked for before; the hypervisor waits for its word before the guest's first
    instruction.

    Raises:
        ConfigurationError: a disk cannot be used.
        HostError, OSError: something that a VM needs cannot be had here.
        KernelError: a `Load` could not make the guest ready.
        RecordingError: the recording's file cannot be made.
    """
    memory_size, cpus, allowed = reserved.memory_size, reserved.cpus, reserved.allowed
    own, group, birth = reserved.own, reserved.group, reserved.birth
    with Descriptors() as given, reserved.take_over() as held:
        memory = held.memory_file("ram", memory_size)
        doorbells = given.memory_file("doorbells", _DOORBELLS_SIZE)
        pages = tuple(
            held.memory_file(f"counters-{name}", counters_size())
            for name in ("root", "worker", "hypervisor", "switch")
        )
        to_worker = given.eventfd()
        # A pipe: on KVM the hypervisor is woken by a signal, which an eventfd cannot send.
        to_hypervisor, ring_hypervisor = given.pipe()
        control, worker_control = _socket_pair(held, given)
        worker_link, hypervisor_link = _socket_pair(given, given)
        console_read, console_write = os.pipe2(os.O_CLOEXEC)
        console = Console(console_read, sink)
        given.own(console_write)

        attached, adapter = None, None
        if network is not None:
            from teuthis.root.network import attach

            attached, adapter = attach(network, given, held, pages[3], allowed)
            for pid in attached.own_processes:
                group.take(pid)
        whole = Memory(memory_size, memory)
        saved = None
        if isinstance(start, Saved):
            news = f"teuthis.disks={len(start.disks) + len(disks)} " if disks else ""
            news += attached.argument if attached else ""
            whole, saved = _restored(start, news, memory, given, held)
            disks = [*start.disks, *disks]
        opened = _open(disks, given, held)
        config = WorkerConfig(
            memory=memory,
            memory_size=memory_size,
            processors=cpus,
            link=worker_link.fileno(),
            doorbells=doorbells,
            to_worker=to_worker,
            to_hypervisor=ring_hypervisor,
            counters=pages[1],
            control=worker_control.fileno(),
            console=console_write,
            network=adapter,
            agent=agent,
            disks=tuple(disk.config for disk in opened),
            saved=saved,
            lockstep=record is not None,
        )
        birth.give(msgspec.json.encode(config), config.descriptors())

        descriptors = {
            "--memory-fd": memory,
            "--link-fd": hypervisor_link.fileno(),
            "--doorbells-fd": doorbells,
            "--to-worker-fd": to_worker,
            "--to-hypervisor-fd": to_hypervisor,
            "--counters-fd": pages[2],
        }
        if processor == "kvm":
            descriptors["--kvm-fd"] = given.own(open_device())
        registers: dict[str, int] = {}
        state: BootState | None = None
        if isinstance(start, Saved) and saved is not None:
            descriptors["--state-fd"] = given.document("state", start.hypervisor)
            if saved.template is not None:
                descriptors["--template-fd"] = saved.template.memory
                descriptors["--pages-fd"] = saved.template.pages
        elif not isinstance(start, Saved):
            extra = attached.argument if attached else ""
            state = start(memory, memory_size, extra)
            registers = state.options()
        options: list[str] = []
        writer = None
        if record is not None and state is not None:
            from teuthis.root import recording

            began = recording.Start.of(memory_size, state)
            registers, options = {}, began.options()
            writer = recording.Writer(record, began)
            held.callback(writer.close)
            writer.load(memory)
            entries, descriptors["--record-fd"] = os.pipe2(os.O_CLOEXEC)
            given.own(descriptors["--record-fd"])
        numbers = {
            "--memory-size": memory_size,
            "--processors": cpus,
            **registers,
            **({} if own.hypervisor is None else {"--uid": own.hypervisor}),
        }
        program = programs.HYPERVISOR_KVM if processor == "kvm" else programs.HYPERVISOR
        command = [str(programs.find(program)), "--processor", processor, *options]
        for option, number in {**descriptors, **numbers}.items():
            command += option, f"{number:#x}"
        if allowed:
            command += "--allow-missing-walls", ",".join(sorted(allowed))
        hypervisor = Child.start(command, descriptors.values())
        held.callback(hypervisor.end)
        group.take(hypervisor.pid)
        worker = birth.child()
        group.take(worker.pid)

        counters = (Counters(pages[0]), *(Counters(page, writable=False) for page in pages[1:]))
        for each in counters:
            held.callback(each.close)
        if writer is not None:
            writer.take(entries, counters[0])
        return Processes(
            worker,
            hypervisor,
            control,
            counters,
            pages,
            whole,
            console,
            held.pop_all(),
            opened,
            attached,
            writer,
        )


def _open(
    disks: Sequence[Disk | SavedDisk], given: Descriptors, held: Descriptors
) -> tuple[OpenDisk, ...]:
    if not disks:
        return ()
    from teuthis.root.disks import open_disks

    return open_disks(disks, given, held)


def _restored(
    saved: Saved, news: str, memory: int, given: Descriptors, held: Descriptors
) -> tuple[Memory, SavedMachine]:
    """The memory of a restored VM, whose own file is empty, and what its worker goes on from.

    On the software processor pages are copied when they are touched. KVM tells nobody before a
    guest touches one: there all are copied now. Its generation id is its own.
    """
    state = given.document("state", saved.worker)
    if saved.processor == "kvm":
        saved.fill(memory)
        generation.give(memory)
        return Memory(saved.memory_size, memory), SavedMachine(state, news=news)
    pages = held.memory_file("pages", len(saved.page_file()))
    os.pwrite(pages, saved.page_file(), 0)
    if saved.first is not None:
        saved.first.put(memory)
    generation.give(memory, pages)
    template = held.own(os.dup(saved.template))
    whole = Memory(saved.memory_size, memory, template, pages)
    return whole, SavedMachine(state, Template(template, pages), news)


def _socket_pair(one: Descriptors, other: Descriptors) -> tuple[socket.socket, socket.socket]:
    """Two ends of a socket that keeps packets apart and notices when its other end is gone."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return one.enter_context(near), other.enter_context(far)
