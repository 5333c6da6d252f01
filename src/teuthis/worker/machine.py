"""One VM's worker put together: which event goes where, and how the VM ends."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from teuthis.flows import FLOWS, Counters
from teuthis.protocol import (
    Ended,
    Facts,
    ForGuest,
    NetworkConfig,
    Pause,
    Resume,
    Save,
    Shutdown,
    Status,
    StatusKind,
    Stop,
)
from teuthis.worker import link as partition
from teuthis.worker.agent.agent import Agent
from teuthis.worker.console import Console
from teuthis.worker.control import Control, LifelineCut
from teuthis.worker.devices.hvsock import HvSock
from teuthis.worker.devices.integration import Integration
from teuthis.worker.devices.network.device import (
    LET_GO_SECONDS,
    OFFER,
    SETTLE_SECONDS,
    Network,
)
from teuthis.worker.devices.network.port import Port
from teuthis.worker.devices.network.rndis import ETHERNET_HEADER
from teuthis.worker.devices.storage import storvsp
from teuthis.worker.devices.storage.backend import Backend
from teuthis.worker.devices.storage.layer import LayerDamaged
from teuthis.worker.devices.storage.storvsp import Storvsp
from teuthis.worker.doorbells import Doorbells
from teuthis.worker.ending import EndVM
from teuthis.worker.link import Link
from teuthis.worker.lockstep import Lockstep
from teuthis.worker.loop import READ, WRITE, Few, Loop
from teuthis.worker.memory import GuestMemory
from teuthis.worker.saved import StateError, restore, save
from teuthis.worker.saving import Saving
from teuthis.worker.vmbus.server import Server

STOP_SECONDS: Final = 2.0
"""How long the hypervisor may take to answer STOP."""
DRAIN_SECONDS: Final = 1.0
"""How long the client may take to read what the guest wrote before its end."""
_CRASH_TEXT_MAX = FLOWS["memory.crash-text"].max_bytes
_CRASH_HAS_TEXT = 1 << 62


class Timed(Protocol):
    """Something that wants to be called again at a certain time."""

    def deadline(self) -> float | None:
        """When, in seconds of `time.monotonic`; None: not at all."""

    def expire(self) -> None:
        """Does what is due by now, if anything."""


class Resuming(Protocol):
    """Something that is concerned by a guest that goes on after it stood still."""

    def resumed(self) -> None:
        """It goes on."""


class Machine:
    """All that one worker serves, and the loop that serves it."""

    def __init__(
        self,
        memory: GuestMemory,
        link: Link,
        doorbells: Doorbells,
        control: Control,
        console: Console,
        loop: Loop,
        counters: Counters,
        disks: Sequence[Backend] = (),
        *,
        processors: int = 1,
        agent: bool,
        lockstep: bool = False,
        saved: bytes | None = None,
        news: str = "",
    ) -> None:
        """Puts everything together.

        `processors`: how many the guest has; `agent`: our agent is in the guest; `lockstep`: the
        machine is recorded; `saved`: the state to go on from, of a worker before this one; `news`:
        what the agent is told then.
        """
        self._memory = memory
        self._link = link
        self._doorbells = doorbells
        self._control = control
        self._console = console
        self._loop = loop
        self._counters = counters
        self._server = Server(memory, counters, processors)
        self._sockets = HvSock(self._server, counters, time.monotonic)
        self._agent = Agent(loop, self._sockets, counters, control.send, self._agent_text, news)
        self._has_agent = agent
        if agent:
            self._agent.listen()
        self._integration = Integration(
            loop,
            self._server,
            counters,
            time.monotonic,
            control.send,
            heartbeat_is_ready=not agent,
        )
        self._timed: list[Timed] = [self._sockets, self._agent, self._integration]
        self._resuming: list[Resuming] = [self._agent, self._integration]
        self._stop_deadline: float | None = None
        self._later: deque[tuple[ForGuest, list[int]]] = deque()
        """What was asked for while the guest stood still."""
        self._saving = Saving(
            link.send,
            control.send,
            self._state,
            self._resumed,
            counters,
            None if saved is None else self._agent.report_ready,
        )
        self.few = Few()
        """Waits for the root side and the hypervisor only."""
        self._lockstep = (
            Lockstep(link, control, self.few, memory, doorbells.flush) if lockstep else None
        )
        self._saved = saved
        self._disks = disks
        if disks:
            storage = Storvsp(self._server, memory, counters, disks, console.note)
            self._server.install(storvsp.OFFER, storage)

    def add_network(self, config: NetworkConfig) -> None:
        """Gives the VM a network adapter."""
        port = Port(self._loop, config.frames, config.mtu + ETHERNET_HEADER)
        adapter = Network(
            self._server,
            self._memory,
            self._counters,
            port,
            config.mac,
            config.mtu,
            self._console.note,
            time.monotonic,
            LET_GO_SECONDS if self._has_agent else SETTLE_SECONDS,
        )
        self._server.install(OFFER, adapter)
        self._timed.append(adapter)
        self._resuming.append(adapter)

    def run(self) -> None:
        """Serves the VM until it ends. Raises `LifelineCut` when the root side goes first."""
        try:
            self._load_disks()
            self._link.send(partition.START)
            self._link.flush()
            if self._saved is not None:
                self._restore(self._saved)
                self._saved = None
            while self._lockstep is not None:
                self._lockstep.turn(self)
            while True:
                self._flush()
                if self._saving.standing:
                    self._stand_still()
                else:
                    self._loop.turn(self._timeout())
                    self._expire()
        except EndVM as end:
            self._end(end)
        except LifelineCut:
            raise
        except Exception as error:  # a defect of ours ends the VM as anything else does
            self._end(EndVM(Ended.INTERNAL_ERROR, _internal_error(error)))

    def _load_disks(self) -> None:
        for lun, disk in enumerate(self._disks):
            try:
                disk.load()
            except (OSError, LayerDamaged) as error:
                raise EndVM(Ended.LAYER_DAMAGED, f"disk {lun}: {error}") from error

    # ---- events ----------------------------------------------------------------------------------

    def work(self, timeout: float) -> bool:
        """As `Served.work`, of a machine in lockstep."""
        self._watch_root()
        due = self._timeout()
        happened = self._loop.turn(timeout if due is None else min(timeout, due))
        self._expire()
        return happened

    def hand_out(self) -> bool:
        """Gives doorbells and link what the last turn produced; whether there was anything."""
        produced = bool(self._server.interrupts or self._server.outbox)
        for relid, vp in self._server.interrupts:
            self._doorbells.ring(relid, vp)
        self._server.interrupts.clear()
        for message in self._server.outbox:
            self._link.send(message)
        self._server.outbox.clear()
        return produced

    def _flush(self) -> None:
        """Hands out what the last turn produced and waits for the rest of it to be taken."""
        self.hand_out()
        self._link.flush()
        self._doorbells.flush()
        self._watch(self._link.fileno(), self._link.blocked, self._on_link)
        self._watch_root()

    def _watch_root(self) -> None:
        self._watch(self._control.fileno(), self._control.blocked, self._on_control)
        self._loop.watch(self._doorbells.fileno(), READ, self._on_doorbells)

    def _watch(self, descriptor: int, blocked: bool, callback: Callable[[], None]) -> None:
        self._loop.watch(descriptor, READ | WRITE if blocked else READ, callback)

    def _on_link(self) -> None:
        for message in self._link.receive():
            self.handle(message)

    def handle(self, message: partition.Incoming) -> None:
        """Takes a message of the hypervisor's. Raises `EndVM`."""
        match message:
            case partition.PostMessage(connection_id, message_type, payload):
                self._server.receive(connection_id, message_type, payload)
            case partition.ConsoleText(data):
                self._console.write(data)
            case partition.Note(text):
                self._console.note(text)
            case partition.Paused():
                self._saving.paused()
            case partition.State(piece, left):
                self._saving.piece(piece, left)
            case partition.Turn():  # a machine in lockstep takes it before it comes here
                self._counters.reject("link.turn", "unasked")
                raise EndVM(Ended.LINK_VIOLATION)
            case partition.End(reason, crash):
                self._crash_text(crash)
                raise EndVM(reason)

    def _on_doorbells(self) -> None:
        for relid in self._doorbells.take():
            self._serve(relid)

    def _serve(self, relid: int) -> None:
        if self._server.doorbell(relid):
            self._loop.soon(partial(self._serve, relid))

    def _on_control(self) -> None:
        self._control.flush()
        for request, descriptors in self._control.receive():
            if isinstance(request, Stop):
                self._link.send(partition.STOP)
                self._stop_deadline = time.monotonic() + STOP_SECONDS
            elif isinstance(request, Pause | Resume | Save):
                self._saving.handle(request, descriptors)
            elif self._saving.standing:
                self._later.append((request, descriptors))
            else:
                self._handle(request, descriptors)

    def _handle(self, request: ForGuest, descriptors: list[int]) -> None:
        if isinstance(request, Shutdown | Facts):
            self._integration.handle(request, descriptors)
        else:
            self._agent.handle(request, descriptors)

    # ---- saved machines --------------------------------------------------------------------------

    def _restore(self, saved: bytes) -> None:
        """Goes on from a saved state. Raises `EndVM` when it is none."""
        try:
            restore(saved, self._server, self._sockets, self._agent, self._counters)
        except StateError as error:
            raise EndVM(Ended.STATE_REFUSED, str(error)) from error
        for relid in self._server.ring_all():
            self._serve(relid)

    def _state(self) -> bytes:
        self.hand_out()  # what a guest is told is part of the hypervisor's state
        return save(self._server, self._sockets, self._agent)

    def _resumed(self) -> None:
        for each in self._resuming:
            each.resumed()

    def _stand_still(self) -> None:
        """Waits for the root side and the hypervisor only: the guest's memory stays as it is.

        What else is asked for waits until the guest goes on.
        """
        both = (self._control, self._link)
        wanted = {each.fileno(): READ | WRITE if each.blocked else READ for each in both}
        for descriptor in self.few.wait(wanted):
            if descriptor == self._control.fileno():
                self._on_control()
            else:
                self._on_link()
        if not self._saving.standing:
            while self._later:
                self._handle(*self._later.popleft())

    # ---- time ------------------------------------------------------------------------------------

    def _timeout(self) -> float | None:
        candidates = [self._stop_deadline, *(timed.deadline() for timed in self._timed)]
        deadlines = [deadline for deadline in candidates if deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _expire(self) -> None:
        for timed in self._timed:
            timed.expire()
        if self._stop_deadline is not None and self._stop_deadline <= time.monotonic():
            raise EndVM(Ended.STOPPED)

    # ---- the end ---------------------------------------------------------------------------------

    def _agent_text(self, text: str) -> None:
        self._console.write(f"[guest agent] {text}\n".encode())

    def _crash_text(self, crash: tuple[int, ...]) -> None:
        """The guest's last words: a page of its log at P3, P4 bytes long, when it says so."""
        if not crash:
            return
        *_, address, length, control = crash
        self._console.note("the guest reported a crash; its last words:")
        if not control & _CRASH_HAS_TEXT:
            return
        text = self._memory.read(address, length) if length <= _CRASH_TEXT_MAX else None
        if text is None:
            self._counters.reject("memory.crash-text", "outside")
        else:
            self._counters.accept("memory.crash-text", length)
            self._console.write(text.rstrip(b"\0\n") + b"\n")

    def _end(self, end: EndVM) -> None:
        """Reports the end after what the guest wrote before it has been handed out."""
        if end.note:
            self._console.note(end.note)
        self._loop.unwatch(self._link.fileno())
        self._loop.unwatch(self._doorbells.fileno())
        if end.reason is not Ended.INTERNAL_ERROR:
            try:
                self._drain()
            except LifelineCut:
                raise
            except Exception as error:  # a defect of ours must not hide why the VM ended
                self._console.note(_internal_error(error))
        self._control.finish(Status(StatusKind.ENDED, value=end.reason))

    def _drain(self) -> None:
        """Takes what the guest's rings still hold and gives the client time to read it all."""
        if self._lockstep is None:  # else the guest's memory stays as it was recorded
            with suppress(EndVM):
                self._on_doorbells()
        self._agent.abandon()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._agent.busy or not self._console.empty:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            with suppress(EndVM):
                self._loop.turn(remaining)


def _internal_error(error: Exception) -> str:
    """One line about a defect of ours: its kind and place, never a value."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_qualname}:{place.tb_lineno}" if place else ""
    return f"internal error in the worker: {type(error).__name__}{where}"
