"""What fuzzers start from: the recorded inputs in `fuzz/seeds`, each as its target reads bytes.

The harnesses in Rust make their choices from bytes one by one, so the bytes that lead to a recorded
input are written here (`hypervisor/tests/fuzz` is the other half: a harness that changes makes its
part of this useless). Which bytes make hypothesis choose a recorded input is found by trying:
`python -m fuzz.corpora TARGET DIRECTORY`, in a process of its own.
"""

import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from fuzz.recorded.intercepts import Intercept
from fuzz.recorded.seeds import kept
from teuthis.flows import FLOWS

ROOT: Final = Path(__file__).parents[1]
_TRIALS: Final = 1500
_RANDOM_INPUTS: Final = 60
_RANDOM_BYTES: Final = 12_000
_HOPELESS: Final = 100
_TRIAL_BYTES: Final = 400
_INPUT: Final = 0x2000
_SIGNAL_EVENT: Final = 0x1_005D
_POST_MESSAGE_BYTES: Final = 256
_RUNS_INTO: Final = 7
"""The step of the partition's harness that is an intercept."""
_CALL: Final = bytes((0, _RUNS_INTO, 0, 7))
"""A hypercall, up to its parameters."""


def plant(target: str, short: str, corpus: Path) -> None:
    """Puts what is recorded for a target into its corpus, unless it is there."""
    if corpus.exists() and any(corpus.iterdir()):
        return
    corpus.mkdir(parents=True, exist_ok=True)
    if short in _HARNESSES:
        for number, data in enumerate(_HARNESSES[short]()):
            (corpus / f"seed-{number:03}").write_bytes(data)
        # As `make test` does: where nothing is known, anything.
        source = random.Random(short)  # noqa: S311 (the same bytes each time)
        for number in range(_RANDOM_INPUTS):
            data = source.randbytes(source.randrange(_RANDOM_BYTES))
            (corpus / f"random-{number:03}").write_bytes(data)
    elif "::" in target:
        command = [sys.executable, "-m", "fuzz.corpora", target, str(corpus)]
        subprocess.run(command, cwd=ROOT, check=True)


# ---- hypervisor/tests/fuzz -----------------------------------------------------------------------


def _value(number: int) -> bytes:
    """As `Bytes::value` reads any number."""
    return b"\x06" + struct.pack("<Q", number)


def _seeds(*flows: str) -> Iterable[bytes]:
    return (seed for flow in flows for seed in kept(flow))


def _code() -> Iterable[bytes]:
    registers, handlers = bytes((4, 0, 1)) * 16, bytes(6) * 32
    for seed in kept("instruction.decode"):
        # A quarter of what is left is not taken for code.
        yield bytes(4) + registers + bytes(1) + handlers + seed + bytes(len(seed) // 3 + 1)


def _doorbells() -> Iterable[bytes]:
    for seed in kept("doorbell.to-hypervisor"):
        (channel,) = struct.unpack("<H", seed)
        yield b"\x01" + struct.pack("<IBB", 2048 + channel, 1, 0)


def _link() -> Iterable[bytes]:
    sent = (flow.id for flow in FLOWS.values() if flow.fuzz.endswith("/link.rs#run"))
    for seed in _seeds(*sent):
        _, kind, length, value = struct.unpack_from("<HHIQ", seed)
        head = bytes((0, kind - 12)) + struct.pack("<I", length) + b"\x06"
        yield head + b"\x03" + _value(value) + bytes((length,)) + seed[16:] + b"\0"


def _replay() -> Iterable[bytes]:
    entries = kept("recording.entry")
    yield from (b"\0" + entry for entry in entries)
    yield b"\0" + b"".join(entries)


def _partition() -> Iterable[bytes]:
    # One processor, with its hypercall page and synthetic interrupt controller.
    begin = bytes((0, 0, 0, 1, 1))
    registers = ("partition", "time", "synic", "stimer", "crash")
    flows = [f"msr.{name}" for name in registers]
    flows += ["intercept.cpuid", "intercept.halt", "port.serial", "port.power"]
    steps = [_intercept(Intercept.decode(seed)) for seed in _seeds(*flows)]
    clock = Intercept("PortRead", 1, FLOWS["port.cmos"].values["data"])
    steps += [_intercept(Intercept.decode(seed)) + _intercept(clock) for seed in kept("port.cmos")]
    yield from (begin + step for step in steps)
    yield begin + b"".join(steps)
    for seed in kept("hypercall.post-message"):
        page = b"\0\x05" + struct.pack("<I", _INPUT) + seed.ljust(_POST_MESSAGE_BYTES, b"\0")
        call = _CALL + b"\0" + b"\x01" + struct.pack("<I", _INPUT) + _value(0)
        yield begin + page + call
    for seed in kept("hypercall.signal-event"):
        (number,) = struct.unpack("<Q", seed)
        yield begin + _CALL + b"\x01" + b"\x02" + _value(number) + _value(0)
    for seed in kept("link.deliver-message"):
        yield begin + b"\0\0" + seed[16:].ljust(240, b"\0") + struct.pack("<BIB", 2, 1, 0)
    for seed in kept("doorbell.to-hypervisor"):
        yield begin + b"\0\x01\0" + seed


def _intercept(found: Intercept) -> bytes:
    """One step of the partition's harness."""
    number, value = _value(found.number), _value(found.value)
    size = {1: 0, 2: 1, 4: 2}.get(found.size, 0)
    port = b"\x02" + struct.pack("<H", found.number & 0xFFFF)
    body = {
        "Cpuid": b"\0" + number + value,
        "MsrRead": b"\x01\x03" + number,
        "MsrWrite": b"\x02\x03" + number + value,
        "PortRead": b"\x05" + port,
        "PortWrite": b"\x06" + port + b"\x01" + value,
        "Halt": b"\x08\0",
    }[found.kind]
    return bytes((0, _RUNS_INTO, size)) + body


def _whole() -> Iterable[bytes]:
    registers = [Intercept.decode(seed) for seed in _seeds("msr.synic", "msr.stimer")]
    begin = b"".join(
        b"\0\x03" + struct.pack("<I", each.number) + _value(each.value)
        for each in registers
        if each.kind == "MsrWrite"
    )
    place = bytes((2, 4))
    answers = [
        b"\x01" + bytes(4) + b"\x03" + bytes((len(seed) - 16,)) + seed[16:] + b"\x02\1\0\0\0"
        for seed in kept("link.deliver-message")
    ]
    for seed in kept("hypercall.post-message"):
        words = struct.iter_unpack("<Q", seed.ljust(-(-len(seed) // 8) * 8, b"\0"))
        stores = [
            b"\x04" + _value(word) + place + bytes((number,))
            for number, (word,) in enumerate(words)
        ]
        call = b"\x02" + _value(0) + b"\0" + place + b"\0" + place + b"\0"
        yield _program(begin + b"".join(stores) + call + b"\x0a") + b"".join(answers)
    for seed in kept("hypercall.signal-event"):
        call = b"\x02" + _value(_SIGNAL_EVENT) + b"\x01" + b"\x01" + seed + place + b"\0"
        yield _program(begin + call) + b"".join(answers)


def _program(steps: bytes) -> bytes:
    """Steps of the guest, behind their number of words."""
    steps += b"\x0b" * (-len(steps) % 4)
    return struct.pack("<I", len(steps) // 4) + steps


_HARNESSES: Final[dict[str, Callable[[], Iterable[bytes]]]] = {
    "code": _code,
    "doorbells": _doorbells,
    "link": _link,
    "partition": _partition,
    "record": lambda: (),
    "replay": _replay,
    "whole": _whole,
}


# ---- properties ----------------------------------------------------------------------------------


def _find(target: str, corpus: Path) -> None:
    """Tries bytes until each recorded input that the property can choose has been chosen."""
    from tests.unit import recorded

    from fuzz.drive import load

    chosen: set[bytes] = set()

    def note(seed: bytes) -> bytes:
        chosen.add(seed)
        return seed

    recorded.whole = note
    run = load(target)
    seen: set[bytes] = set()
    source = random.Random(target)  # noqa: S311 (the same bytes each time)
    for number in range(_TRIALS):
        data = source.randbytes(_TRIAL_BYTES)
        chosen.clear()
        run(data)
        if number == _HOPELESS and not seen:
            return  # nothing of this target's is in a recording
        if not chosen <= seen:
            seen |= chosen
            (corpus / f"seed-{number:03}").write_bytes(data)


if __name__ == "__main__":
    _find(sys.argv[1], Path(sys.argv[2]))
