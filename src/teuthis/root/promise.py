"""A value that one thread gives and others wait for.

It is used as `concurrent.futures.Future` is; to load that, with `logging` and all else that comes
along, takes a fifteenth of a command's start.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Promise(Generic[_T]):
    """Kept once: by a value or by an error. May be used from any thread."""

    def __init__(self) -> None:
        self._kept = threading.Event()
        self._lock = threading.Lock()
        self._value: _T
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Promise[_T]], None]] = []

    def set_result(self, value: _T) -> None:
        """Keeps it."""
        self._value = value
        self._keep()

    def set_exception(self, error: BaseException) -> None:
        """Keeps it by an error, which whoever waits is then given."""
        self._error = error
        self._keep()

    def _keep(self) -> None:
        with self._lock:
            assert not self._kept.is_set(), "a promise is kept once"
            self._kept.set()
        for callback in self._callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[["Promise[_T]"], None]) -> None:
        """Calls `callback` when it is kept, in the thread that keeps it, or now if it is."""
        with self._lock:
            if not self._kept.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def done(self) -> bool:
        """Whether it is kept."""
        return self._kept.is_set()

    def result(self, timeout: float | None = None) -> _T:
        """The value, once it is there.

        Raises:
            TimeoutError: it is not there after `timeout` seconds.
            BaseException: the error that it was kept by.
        """
        if (error := self.exception(timeout)) is not None:
            raise error
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error that it was kept by, if it was, once that is known. Raises `TimeoutError`."""
        if not self._kept.wait(timeout):
            raise TimeoutError
        return self._error
