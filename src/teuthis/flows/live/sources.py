"""The VMs whose counters the page shows: the one that the command runs, and those with names."""

import threading
from collections.abc import Callable, Mapping
from typing import Final

from teuthis.errors import TeuthisError
from teuthis.flows import Count
from teuthis.root import named, store
from teuthis.root.guest import Guest

_LOOK_SECONDS: Final = 2.0

Numbers = tuple[int, int, int, Mapping[str, int]]
"""Count, bytes, rejected; of these, how much for which reason."""


class Sources:
    """Counters by VM. Nothing but names that users chose and numbers comes out of here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[str, Callable[[], dict[str, Count]]] = {}
        self._named: dict[str, Guest] = {}
        self._stop = threading.Event()

    def add(self, name: str, read: Callable[[], dict[str, Count]]) -> None:
        """Shows what `read` gives from now on."""
        with self._lock:
            self._readers[name] = read

    def watch(self) -> None:
        """Looks for named VMs, in a thread, until `close`."""
        threading.Thread(target=self._watch, name="teuthis-live", daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.look()
            if self._stop.wait(_LOOK_SECONDS):
                return

    def look(self) -> None:
        """Connects to the named VMs that have started, and leaves those that have ended."""
        for name, vm in list(self._named.items()):
            if vm.closed:
                self._leave(name)
        try:
            running = [record.name for record in store.running()]
        except TeuthisError:
            return  # its own verbs say what is wrong with the store
        for name in running:
            if name not in self._named:
                self._join(name)

    def _join(self, name: str) -> None:
        try:
            vm = named.connect(name)
        except TeuthisError:
            return  # it ended, or is only starting; the next look will tell
        self._named[name] = vm
        self.add(name, vm.flows)

    def _leave(self, name: str) -> None:
        with self._lock:
            self._readers.pop(name, None)
        self._named.pop(name).close()

    def read(self) -> dict[str, dict[str, Numbers]]:
        """By VM and flow: what happened so far, without the flows that did not."""
        with self._lock:
            readers = dict(self._readers)
        found: dict[str, dict[str, Numbers]] = {}
        for name, read in readers.items():
            try:
                counts = read()
            except (TeuthisError, ValueError):
                continue  # it is ending at this very moment
            found[name] = {
                flow: (count.count, count.bytes, count.rejected, count.kinds)
                for flow, count in counts.items()
                if count
            }
        return found

    def close(self) -> None:
        """Ends all connections; the named VMs go on."""
        self._stop.set()
        for name in list(self._named):
            self._leave(name)
