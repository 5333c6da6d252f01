"""A small event loop over epoll: callbacks per descriptor, and work to be continued soon."""

import select
from collections.abc import Callable, Mapping
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT


class Loop:
    """Descriptors, what to do when they are ready, and what to do before waiting again."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._soon: list[Callable[[], None]] = []

    def fileno(self) -> int:
        """Descriptor of the epoll instance."""
        return self._epoll.fileno()

    def watch(self, descriptor: int, events: int, callback: Callable[[], None]) -> bool:
        """Calls `callback` whenever `descriptor` is ready; False: such a file is always ready."""
        known = self._watched.get(descriptor)
        if known is None:
            try:
                self._epoll.register(descriptor, events)
            except PermissionError:  # a regular file
                return False
        elif known[0] != events:
            self._epoll.modify(descriptor, events)
        self._watched[descriptor] = (events, callback)
        return True

    def unwatch(self, descriptor: int) -> None:
        """Stops watching, if it was watched."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def soon(self, callback: Callable[[], None]) -> None:
        """Calls `callback` in the next turn, which then does not wait."""
        self._soon.append(callback)

    def turn(self, timeout: float | None) -> bool:
        """Waits for something, at most `timeout` seconds, and handles it; whether there was any."""
        work, self._soon = self._soon, []
        ready = self._epoll.poll(0 if work else timeout)
        for descriptor, _ in ready:
            # An earlier callback of this turn may have stopped watching this one.
            watched = self._watched.get(descriptor)
            if watched is not None:
                watched[1]()
        for callback in work:
            callback()
        return bool(ready or work)


class Few:
    """Waits for a few descriptors alone, always the same, whatever else a loop watches.

    By epoll as well: a process that is stopped in `poll` (SIGSTOP, a frozen container, a host that
    sleeps) goes on in another system call, `restart_syscall`, which no list of ours allows.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wanted: dict[int, int] = {}

    def fileno(self) -> int:
        """Descriptor of the epoll instance."""
        return self._epoll.fileno()

    def wait(self, wanted: Mapping[int, int]) -> list[int]:
        """Waits for these events of these descriptors; those for which some came."""
        for descriptor, events in wanted.items():
            known = self._wanted.get(descriptor)
            if known is None:
                self._epoll.register(descriptor, events)
            elif known != events:
                self._epoll.modify(descriptor, events)
            self._wanted[descriptor] = events
        return [descriptor for descriptor, _ in self._epoll.poll()]
