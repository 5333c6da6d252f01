"""The key-value pair service: what the guest says about itself, if a daemon in it does.

Keys and values are the guest's own words. Here only their sizes are judged; the client decodes
them. Reference: Linux `include/uapi/linux/hyperv.h`, `tools/hv/hv_kvp_daemon.c`.
"""

import errno
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.worker.devices.integration.pipe import Answer, Clock, Malformed, Service
from teuthis.worker.vmbus.messages import guid
from teuthis.worker.vmbus.server import Server

_ENUMERATE: Final = 3
_AUTO_POOL: Final = 2
_KEY_MAX: Final = 512
_VALUE_MAX: Final = 2048
_BODY: Final = struct.Struct(f"<BBxxIIII{_KEY_MAX}s{_VALUE_MAX}s")
"""Operation, pool, index, type of the value, size of key and value, key, value."""
_TEXT: Final = 1
_NO_MORE: Final = 0x8007_0103
FACTS_MAX: Final = FLOWS["integration.kvp"].values["facts_max"]
ANSWER_SECONDS: Final = 10.0
"""How long a guest may take to say all."""


class Fact(msgspec.Struct, frozen=True):
    """Key and value in UTF-16, little-endian, each ending with a zero."""

    key: bytes
    value: bytes


Told = Callable[[list[Fact] | int], None]
"""Takes the facts, or an error number."""


class KeyValuePairs(Service):
    """Asks for one pair after the other, on behalf of all who want to know."""

    flow = "integration.kvp"
    versions = ((5, 0), (4, 0))
    interface = guid("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6")
    instance = guid("242ff919-07db-4180-9c2e-b86cb68c8c55")

    def __init__(self, server: Server, counters: Counters, clock: Clock) -> None:
        super().__init__(server, counters, clock)
        self._waiting: list[tuple[float, Told]] = []
        self._facts: list[Fact] = []

    def tell(self, told: Told) -> None:
        """Calls `told` with all facts, or with an error number: there is no daemon, too slow."""
        self._waiting.append((self._clock() + ANSWER_SECONDS, told))
        self._begin()

    def negotiated(self) -> None:
        """Asks on behalf of those who were too early."""
        self._begin()

    def answered(self, answer: Answer) -> None:
        """The next pair, or the end."""
        if answer.status == _NO_MORE:
            self._finish(self._facts)
        elif answer.status:
            self._finish(errno.EIO)
        else:
            self._facts.append(_fact(answer.body))
            if len(self._facts) == FACTS_MAX:
                self._finish(self._facts)
            elif self._waiting:
                self._ask_next()

    def lost(self) -> None:
        """Who waits goes on waiting: the service may come again."""

    def deadline(self) -> float | None:
        """When the first of those who wait has waited enough."""
        return self._waiting[0][0] if self._waiting else None

    def expire(self) -> None:
        """Sends those away who have waited enough."""
        while self._waiting and self._waiting[0][0] <= self._clock():
            _, told = self._waiting.pop(0)
            told(errno.ETIMEDOUT)

    def _begin(self) -> None:
        if self._waiting and self.idle:
            self._facts = []
            self._ask_next()

    def _ask_next(self) -> None:
        self.ask(_BODY.pack(_ENUMERATE, _AUTO_POOL, len(self._facts), 0, 0, 0, b"", b""))

    def _finish(self, result: list[Fact] | int) -> None:
        waiting, self._waiting = self._waiting, []
        for _, told in waiting:
            told(result)


def _fact(body: bytes) -> Fact:
    """The pair in an answer. Raises `Malformed`."""
    if len(body) < _BODY.size:
        raise Malformed("pair", "a pair cut short")
    operation, _, _, kind, key_size, value_size, key, value = _BODY.unpack_from(body)
    if operation != _ENUMERATE or kind != _TEXT:
        raise Malformed("pair", "not a pair of texts")
    if not (2 <= key_size <= _KEY_MAX and 2 <= value_size <= _VALUE_MAX):
        raise Malformed("pair", "a size that no text has")
    if key_size % 2 or value_size % 2:
        raise Malformed("pair", "half a character")
    return Fact(key[:key_size], value[:value_size])
