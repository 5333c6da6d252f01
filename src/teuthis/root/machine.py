"""A running VM as its owner holds it: requests go in, answers come out, and it always ends.

One small thread per VM starts both processes, reads the worker's statuses and watches them by
pidfd. Whichever ends first (the guest, a process, the owner), the thread sees both processes gone
within a bounded time and tells everybody who waits why. If the owner itself dies, `kill -9`
included, the control socket closes with it and the worker ends, and the hypervisor with the
worker; a process that is stuck or taken over the kernel kills, as its parent thread is gone.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from teuthis.errors import HostError, SnapshotError, TeuthisError, VMClosed, VMError
from teuthis.flows import Count, by_flow, total
from teuthis.jail import host
from teuthis.protocol import STATUS_SIZE, Ended, Health, ProtocolError, Save, Stop, encode_request
from teuthis.root.caller import Caller, done
from teuthis.root.console import Console, Sink
from teuthis.root.ending import ending
from teuthis.root.launch import Start, launch
from teuthis.root.processor import Processor
from teuthis.root.promise import Promise
from teuthis.root.reserved import Reserved
from teuthis.root.saved import Memory, Saved, SavedDisk, copy

if TYPE_CHECKING:
    from teuthis.root.disks import Disk
    from teuthis.root.network import Attachment, Wanted

_MAX_STATE: Final = 64 << 20
"""Bytes of state that a worker may write."""
_PATIENCE: Final = 5.0
"""Seconds that both processes have to end by themselves, and to say why, before they are killed.
Milliseconds, but on a busy host."""


class Machine(Caller):
    """The two processes of one VM. Methods may be called from any thread."""

    def __init__(
        self,
        reserved: Reserved,
        start: Start,
        sink: Sink | None,
        disks: Sequence[Disk] = (),
        network: Wanted | None = None,
        *,
        agent: bool = True,
        end_when_hung: bool = False,
        processor: Processor = "soft",
        record: str | None = None,
    ) -> None:
        """Starts a VM; `ready` says when its agent answers, or without `agent` its kernel.

        `record` names the file that its recording goes to.

        Raises:
            HostError, KernelError, RecordingError: see `launch`.
        """
        super().__init__()
        self.ready = self._requests.ready
        self._final: list[int] = []
        self._end_when_hung = end_when_hung
        self._recorded = record is not None
        self._network, self._agent = network, agent
        self.processor: Processor = processor
        self._cpus = reserved.cpus
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)

        def run() -> None:
            # When a thread ends, the kernel kills the processes that it started: so they are
            # started by the thread that sees them end.
            try:
                self._processes = launch(
                    reserved,
                    start,
                    sink,
                    disks,
                    network,
                    agent=agent,
                    processor=processor,
                    record=record,
                )
                self._counters = self._processes.counters[0]
                self._talk_over(self._processes.control)
            except OSError as error:
                launched.set_exception(HostError(f"could not start a VM: {error}"))
            except BaseException as error:
                launched.set_exception(error)
            else:
                launched.set_result(self._processes.console)
                self._manage()

        launched: Promise[Console] = Promise()
        self._thread = threading.Thread(target=run, name="teuthis-vm", daemon=True)
        self._thread.start()
        try:
            self.console = launched.result()
        except BaseException:
            if launched.done() and launched.exception() is not None:
                os.close(self._wake)
            else:
                os.eventfd_write(self._wake, 1)  # it ends as soon as it has begun
            raise

    # ---- looking at it -------------------------------------------------------------------------

    @property
    def attached(self) -> Attachment | None:
        """The VM's place on its network, if it has one."""
        return self._processes.attached

    @property
    def processes(self) -> dict[str, int]:
        """Its processes by name, as process ids."""
        network = self.attached.processes if self.attached else {}
        return {
            "worker": self._processes.worker.pid,
            "hypervisor": self._processes.hypervisor.pid,
            **network,
        }

    @property
    def memory(self) -> Memory:
        """Its memory: descriptors, while it lives."""
        return self._processes.memory

    @property
    def counter_pages(self) -> tuple[int, ...]:
        """Descriptors of the counter pages of root side and processes, while it lives."""
        return self._processes.counter_pages

    # ---- saving --------------------------------------------------------------------------------

    def save(self, target: int) -> Saved:
        """Saves the machine with its memory in the file `target`, taken over.

        It goes on, unless it is paused.

        Raises:
            SnapshotError: it cannot be saved now.
            VMError: the VM is no more.
        """
        with ExitStack() as undo:
            undo.callback(os.close, target)
            if self._recorded:
                raise SnapshotError(
                    "a machine that is being recorded cannot be paused, saved or copied: "
                    "start one without `record`"
                )
            for disk in self._processes.disks:
                disk.check_saveable()
            stood = self.standing
            if not stood:
                self.pause()
            try:
                hypervisor, worker = self._state()
                with self._lock:
                    if self._over:
                        self._requests.raise_error()
                    # Under the lock: the VM's end closes the descriptors.
                    memory = self._processes.memory
                    pages = copy(memory, target)
                    disks = self._saved_disks()
            except OSError as error:
                raise SnapshotError(f"the machine could not be saved: {error}") from error
            finally:
                if not stood:
                    with suppress(VMError):
                        self.resume()
            undo.pop_all()
        return Saved(
            memory.size,
            target,
            pages,
            hypervisor,
            worker,
            disks,
            self._network,
            self._agent,
            self._end_when_hung,
            self.processor,
            self._cpus,
        )

    def _saved_disks(self) -> tuple[SavedDisk, ...]:
        if not self._processes.disks:
            return ()
        from teuthis.root import layers

        return layers.save(self._processes.disks, self._counters)

    def _state(self) -> tuple[bytes, bytes]:
        """The state of the hypervisor and of the worker, while the machine stands still."""
        with ExitStack() as pipes:
            sources, sinks = [], []
            for _ in range(2):
                source, sink = os.pipe2(os.O_CLOEXEC)
                sources.append(pipes.enter_context(os.fdopen(source, "rb")))
                sinks.append(sink)
            try:
                answer = self.submit(lambda number: Save(number), sinks)
            finally:
                for sink in sinks:
                    os.close(sink)
            states = [source.read(_MAX_STATE + 1) for source in sources]
            done(answer, "saved")
        if any(len(state) > _MAX_STATE for state in states):
            raise SnapshotError("the machine's state is too large to be saved")
        return states[0], states[1]

    # ---- reading counters ----------------------------------------------------------------------

    def flows(self) -> dict[str, Count]:
        """Counters of both processes and of ours, by flow; the last ones once the VM has ended."""
        with self._lock:
            words = self._final if self._over else total(self._processes.counters)
        return by_flow(words)

    # ---- ending --------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Both processes are gone before the thread ends."""
        os.eventfd_write(self._wake, 1)

    def _manage(self) -> None:
        reason: Ended | None = None
        try:
            reason = self._watch()
        except ProtocolError:
            self._counters.reject("control.status", "malformed")
            reason = Ended.WORKER_VIOLATION
        finally:
            # A worker that breaks the rules is not waited for.
            patience = 0.0 if reason is Ended.WORKER_VIOLATION else _PATIENCE
            deadline = time.monotonic() + patience
            children = (self._processes.worker, self._processes.hypervisor)
            for child in children:
                child.wait(max(0.0, deadline - time.monotonic()))
            for child in children:
                child.kill()
                self._processes.counters[0].accept("control.exit-status", 4)
            self._processes.console.finish(_PATIENCE)
            self._finish_recording()
            with self._lock:
                self._final = total(self._processes.counters)
                self._over = True
                self._processes.held.close()
                os.close(self._wake)
            if self._closing and reason is Ended.STOPPED:
                self._requests.fail(lambda: VMClosed("this VM is closed: start a new one"))
            else:
                self._requests.fail(lambda: self._error(reason))

    def _finish_recording(self) -> None:
        recording, hypervisor = self._processes.recording, self._processes.hypervisor
        if recording is None:
            return
        worker = self._processes.worker
        in_order = hypervisor.status == worker.status == 0
        recording.finish(self._processes.memory.own if in_order else None)

    def _error(self, reason: Ended | None) -> TeuthisError:
        recording = self._processes.recording
        if recording is not None and recording.error is not None:
            return VMError(f"{recording.error}, and the machine was ended with it")
        for child in (self._processes.worker, self._processes.hypervisor):
            if (missing := host.missing_wall(child.status)) is not None:
                return missing
        return ending(
            reason,
            self.console.last_words(),
            worker=self._processes.worker.fate,
            hypervisor=self._processes.hypervisor.fate,
        )

    def _watch(self) -> Ended | None:
        """Handles statuses until the VM ends; None when the worker died without a reason."""
        worker, hypervisor = self._processes.worker.pidfd, self._processes.hypervisor.pidfd
        poll = select.poll()
        for descriptor in (self._control.fileno(), worker, hypervisor, self._wake):
            poll.register(descriptor, select.POLLIN)
        timeout: float | None = None
        while True:
            events = {descriptor for descriptor, _ in poll.poll(timeout)}
            if self._control.fileno() in events:
                try:
                    packet = self._control.recv(2 * STATUS_SIZE)
                except ConnectionResetError:
                    continue  # it ended with requests unread; its statuses can still be read
                if not packet:
                    return Ended.STOPPED if self._closing else None
                reason = self._requests.take(packet)
                self._counters.accept("control.status", len(packet))
                if reason is not None:
                    return reason
                if self._end_when_hung and self.health is Health.HUNG:
                    self._tell_to_stop()
                    return Ended.HUNG
            elif self._wake in events:
                self._tell_to_stop()
                return Ended.STOPPED
            elif worker in events:
                return None
            elif hypervisor in events:
                poll.unregister(hypervisor)
                timeout = 1000 * _PATIENCE  # for the worker to notice and say why
            elif timeout is not None:
                return Ended.HYPERVISOR_DIED

    def _tell_to_stop(self) -> None:
        with suppress(OSError):
            self._control.send(encode_request(Stop()))
