"""Ready VMs for callers who do not want to wait for one: taken in microseconds, replaced behind."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Mapping
from typing import Final

from teuthis.closing import Closing
from teuthis.errors import ConfigurationError, TeuthisError, VMClosed
from teuthis.images import store
from teuthis.root import settings
from teuthis.root.vm import DEFAULT_MEMORY, VM
from teuthis.warm import interpreters

MAX_SIZE: Final = 10_000


class Pool(Closing):
    """Keeps VMs ready: as many as its size says, all of the same kind.

    Use it in a `with` block. Methods may be called from any thread. Whoever takes a VM has it for
    themselves and closes it; at the pool's end all its VMs end, those that are in use too.
    """

    def __init__(
        self,
        size: int = 1,
        *,
        memory: int | str = DEFAULT_MEMORY,
        image: str = store.TINY,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        warm: str | None = None,
        allow_missing_walls: Collection[str] = (),
    ) -> None:
        """Begins to start VMs, and returns at once.

        Args:
            size: how many VMs wait for somebody who takes them.
            memory: guest memory, as of `VM`.
            image: the image that they boot, as of `VM`.
            env: environment variables of all programs, as of `VM`.
            user: who programs run as, as of `VM`.
            warm: an interpreter that has started already, as of `VM`.
            allow_missing_walls: as of `VM`.

        Raises:
            ConfigurationError: an argument cannot be.
        """
        if not 1 <= size <= MAX_SIZE:
            raise ConfigurationError(f"a pool of {size}: it can have 1 to {MAX_SIZE} VMs")
        self.size = size
        self._memory = settings.memory_size(memory)
        self._image = store.find(image).name
        self._env = env
        self._user = None if user is None else settings.user(user)
        self._warm = interpreters.kind(warm)
        self._walls = tuple(allow_missing_walls)
        self._changed = threading.Condition()
        self._ready: deque[VM] = deque()
        self._taken: weakref.WeakSet[VM] = weakref.WeakSet()
        self._error: TeuthisError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._refill, name="teuthis-pool", daemon=True)
        self._thread.start()

    def take(self, timeout: float | None = None) -> VM:
        """A VM that nobody has used, ready to run programs; another one is started in its place.

        Args:
            timeout: seconds to wait for one, if none is ready; None: as long as it takes.

        Raises:
            TimeoutError: none was ready in time.
            VMClosed: the pool is closed.
            HostError, KernelError, …: none is ready, and none could be started.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                while self._ready:
                    vm = self._ready.popleft()
                    self._changed.notify_all()
                    if not vm.closed:  # it may have been killed while it waited
                        self._taken.add(vm)
                        return vm
                self._await_change(deadline)

    def wait(self, timeout: float | None = None) -> None:
        """Waits until as many VMs are ready as the pool can have.

        Raises:
            TimeoutError, VMClosed, HostError, …: as of `take`.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while len(self._ready) < self.size:
                self._await_change(deadline)

    def _await_change(self, deadline: float) -> None:
        """Waits for another VM. Raises the error of one that could not be started."""
        if self._closed:
            raise VMClosed("this pool is closed: make a new one")
        if self._error is not None:
            error, self._error = self._error, None
            self._changed.notify_all()  # who asks again has it tried again
            raise error
        left = deadline - time.monotonic()
        if not self._changed.wait(None if math.isinf(left) else max(0.0, left)):
            raise TimeoutError("no VM of this pool was ready in time")

    @property
    def ready(self) -> int:
        """How many VMs wait to be taken."""
        return len(self._ready)

    def close(self) -> None:
        """Ends all VMs of the pool; does nothing a second time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for vm in (*self._ready, *self._taken):
            vm.close()
        self._ready.clear()

    def _refill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (len(self._ready) < self.size and not self._error)
                )
                if self._closed:
                    return
            try:
                started: VM | TeuthisError = self._start()
            except TeuthisError as error:
                started = error
            with self._changed:
                if isinstance(started, VM):
                    self._ready.append(started)
                else:
                    self._error = started
                self._changed.notify_all()

    def _start(self) -> VM:
        return VM(
            self._memory,
            image=self._image,
            env=self._env,
            user=self._user,
            warm=self._warm,
            allow_missing_walls=self._walls,
            processor="soft" if self._image == store.TINY else "auto",
        )
