"""What a stock kernel offers, as its user asks for it: power-off, and facts about the guest."""

import errno
import os
import struct
import time
from typing import Final

from teuthis.errors import GuestPowerOff, NoFacts, ShutdownFailed, ShutdownTimeout
from teuthis.flows import FLOWS
from teuthis.protocol import Facts, Shutdown, StatusKind
from teuthis.root.caller import Caller
from teuthis.root.console import harmless
from teuthis.root.streams import Exchange, Pipes

_SIZES: Final = struct.Struct("<HH")
_MAX_BYTES: Final = FLOWS["client.facts"].max_bytes


def shutdown(machine: Caller, timeout: float) -> None:
    """Asks the guest to power off and waits until it has.

    Raises:
        ShutdownFailed: it refused, or has not done it after `timeout` seconds.
        VMError: it ended in another way.
    """
    deadline = time.monotonic() + timeout
    try:
        answer = machine.submit(Shutdown)
        try:
            status = answer.finished.result(timeout)
        except TimeoutError:
            raise ShutdownTimeout(
                f"the guest did not answer the wish to power off for {timeout:g} s: its kernel "
                "lacks the module hv_utils, or hangs; `close()` (`teuthis rm`) ends it at once"
            ) from None
        if status.kind is StatusKind.FAILED and status.value == errno.EAGAIN:
            raise ShutdownTimeout(
                "the guest has not answered many wishes to power off: `close()` (`teuthis rm`) "
                "ends it at once"
            )
        if status.kind is StatusKind.FAILED:
            raise ShutdownFailed("the guest refused to power off: `close()` ends it at once")
        machine.raise_end(max(0.0, deadline - time.monotonic()))
    except GuestPowerOff:
        return
    raise ShutdownTimeout(
        f"the guest agreed to power off but had not done it after {timeout:g} s: "
        "give it more time, or end it at once with `close()`"
    )


def facts(machine: Caller) -> dict[str, str]:
    """What the guest says about itself; its own words, harmless for terminals.

    Raises:
        NoFacts: it says nothing, or nothing that can be read.
        VMError: the VM is no more.
    """
    with Pipes() as pipes:
        sink = pipes.reader()
        answer = machine.submit(Facts, pipes.given)
        pipes.sent()
        exchange = Exchange(b"", None, [sink], _MAX_BYTES)
        complete = exchange.run()
        status = answer.finished.result()
    if status.kind is StatusKind.FAILED:
        reason = os.strerror(status.value)
        if status.value == errno.ETIMEDOUT:
            reason = "no hv_kvp_daemon answers in it (Debian: hyperv-daemons)"
        raise NoFacts(f"the guest says nothing about itself: {reason}")
    if not complete:
        raise NoFacts("the guest says more about itself than anybody wants to know")
    try:
        return decode_facts(exchange.output(sink))
    except NoFacts:
        machine.count("client.facts", rejected="malformed")
        raise


def decode_facts(data: bytes) -> dict[str, str]:
    """The facts in {u16 size of the key, u16 size of the value, key, value}…; both in UTF-16.

    Raises:
        NoFacts: they cannot be read.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _SIZES.size:
            raise NoFacts("the guest's facts end in the middle")
        key_size, value_size = _SIZES.unpack_from(data, at)
        at += _SIZES.size
        if key_size + value_size > len(data) - at:
            raise NoFacts("the guest's facts lie about their size")
        key = _text(data[at : at + key_size])
        at += key_size
        found[key] = _text(data[at : at + value_size])
        at += value_size
    return found


def _text(data: bytes) -> str:
    text = harmless(data.decode("utf-16-le", "replace").partition("\0")[0].encode())
    return " ".join(text.split())
