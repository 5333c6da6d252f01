"""A plugin of pytest: what was refused during which test (see evidence.py)."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from tests.register import evidence
from tests.register.evidence import Kind
from teuthis.flows import Counters


class Recorder:
    """Notes each kind of bad input whose counter rises, in this process or in a page it maps."""

    def __init__(self) -> None:
        self.test: str | None = None
        self.refused: dict[str, set[Kind]] = {}
        self.reached: dict[str, set[str]] = {}
        self._pages: WeakKeyDictionary[Counters, dict[Kind, int]] = WeakKeyDictionary()
        self._held: list[Counters] = []
        self.lock = RLock()
        """VMs end in threads of their own: no page may be closed while it is looked at."""

    def refuse(self, kind: Kind) -> None:
        if self.test is not None:
            self.refused.setdefault(self.test, set()).add(kind)

    def watch(self, page: Counters) -> None:
        """Looks from now on at what another process counts in `page`."""
        with self.lock:
            self._pages[page] = {}
            self._held.append(page)

    def look(self) -> None:
        with self.lock:
            for page, before in list(self._pages.items()):
                now = {
                    (flow, kind): number
                    for flow, count in page.snapshot().items()
                    for kind, number in count.kinds.items()
                }
                for kind, number in now.items():
                    if number > before.get(kind, 0):
                        self.refuse(kind)
                before.update(now)

    def finish(self) -> None:
        """The test is over: what nobody else holds, and with it a descriptor, is let go."""
        self.look()
        self._held.clear()
        self.test = None

    def forget(self, page: Counters) -> None:
        if page in self._pages:
            self.look()
            del self._pages[page]


RECORDER = Recorder()


def pytest_configure(config: pytest.Config) -> None:
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    start, reject, close = Counters.__init__, Counters.reject, Counters.close

    def watched(self: Counters, descriptor: int | None = None, **options: Any) -> None:
        start(self, descriptor, **options)
        if descriptor is not None:
            RECORDER.watch(self)

    def refused(self: Counters, flow: str, kind: str) -> None:
        reject(self, flow, kind)
        RECORDER.refuse((flow, kind))

    def closed(self: Counters) -> None:
        with RECORDER.lock:
            RECORDER.forget(self)
            close(self)

    patch.setattr(Counters, "__init__", watched)
    patch.setattr(Counters, "reject", refused)
    patch.setattr(Counters, "close", closed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    RECORDER.test = item.nodeid.partition("[")[0]
    RECORDER.refused.setdefault(RECORDER.test, set())
    result = yield
    RECORDER.finish()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Sees which flows' handlers a property that is their fuzz target calls."""
    handlers = evidence.handlers(item.nodeid)
    if not handlers:
        return (yield)
    reached = RECORDER.reached.setdefault(item.nodeid, set())

    def called(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call":
            reached.update(handlers.get(frame.f_code, ()))

    sys.setprofile(called)
    try:
        return (yield)
    finally:
        sys.setprofile(None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        seen = evidence.Evidence(RECORDER.refused, RECORDER.reached)
        evidence.write(Path(session.config.rootpath), seen)
