"""Real machines recorded and replayed: the same to the last register and byte of memory."""

import contextlib
import hashlib
import io
import os
import re
import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from fuzz.recorded import replay
from fuzz.recorded.seeds import kept
from fuzz.recorded.traffic import Traffic, View
from fuzz.target import all_targets

import teuthis
from teuthis.flows import FLOWS, Count, Counters
from teuthis.root import recording
from teuthis.root.recording import read
from teuthis.root.replay import Outcome, Replay

from .processes import run


class Replayed:
    def __init__(self, path: Path, *, until: int | None = None, trace: bool = False) -> None:
        self.console, self.report = io.BytesIO(), io.BytesIO()
        with read(path) as found:
            replay = Replay(found, self.console, self.report, until=until, trace=trace)
            self.outcome = replay.run()
        self.counts = replay.counters.snapshot()
        self.text = self.report.getvalue().decode()


class Recorded(NamedTuple):
    path: Path
    console: bytes
    counts: dict[str, Count]
    """What its processes counted."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A boot with a disk, an adapter and some commands."""
    directory = tmp_path_factory.mktemp("recording")
    disk, path, console = directory / "disk", directory / "run.rec", io.BytesIO()
    disk.write_bytes(os.urandom(1 << 20))
    with teuthis.VM(
        "128M",
        disks=[teuthis.Disk(disk)],
        network=f"switch:recorded-{os.getpid()}",
        console=console,
        record=path,
    ) as vm:
        assert vm.processor == "soft"
        found = vm.run(["sha256sum", "/dev/sda"], timeout=300)
        digest = hashlib.sha256(disk.read_bytes()).hexdigest()
        assert found.stdout.startswith(digest.encode())
        assert vm.run(["cat"], input=b"into the guest").stdout == b"into the guest"
        vm.run(["dd", "if=/dev/zero", "of=/dev/sda", "bs=64k", "count=4", "conv=fsync"], check=True)
        vm.run(["sh", "-c", "sleep 0.1; echo late > /dev/ttyS0; head -c 8 /dev/urandom | od"])
        with pytest.raises(teuthis.SnapshotError, match="recorded"):
            vm.snapshot(directory / "snapshot")
    return Recorded(path, console.getvalue(), vm.flows())


def test_a_boot_replays_bit_for_bit(recorded: Recorded) -> None:
    path, console, _ = recorded
    with read(path) as found:
        assert found.memory is not None
    first, second = Replayed(path), Replayed(path)
    assert first.outcome is Outcome.EQUAL, first.text
    assert b"late" in console
    # Notes of the hypervisor's own go into the report of a replay.
    assert first.console.getvalue() == re.sub(rb"\[teuthis\] [^\n]*\n", b"", console)
    assert second.text == first.text
    assert second.console.getvalue() == first.console.getvalue()
    for flow in ("replay.report", "replay.console", "control.exit-status"):
        assert first.counts[flow].count > 0


EACH_COUNTED = re.compile(
    r"(hypercall|vmbus|storvsp|nvsp|hvsock|agent|integration|link)\.|ring\.packet|doorbell\.to-worker"
)
"""Flows each of whose inputs is counted, once."""
NOT_RECORDED = {
    "control.request": "comes from the client",
    "control.counters": "is a page of this process's",
    "network.from-uplink": "comes from passt",
    "ring.send": "is made by the worker",
    "switch.join": "comes from this process",
}
"""What a boot exercises and a recording does not show."""


def test_a_recording_shows_what_its_guest_sent(recorded: Recorded) -> None:
    seen: Counter[str] = Counter()
    with read(recorded.path) as found, contextlib.closing(replay.Replay(found)) as again:
        view = View(again.memory, again.memory_size)
        traffic = Traffic(view, lambda flow, _: seen.update([flow]))
        for turn in again.turns():
            traffic.see(turn)
    counted = {
        name: count.count
        for name, count in recorded.counts.items()
        if EACH_COUNTED.match(name) and FLOWS[name].direction.startswith("guest")
    }
    assert {name: seen[name] for name in counted} == counted
    assert sum(counted.values()) > 100


def test_each_target_that_a_boot_exercises_begins_with_what_one_sent(recorded: Recorded) -> None:
    for target in all_targets():
        exercised = [flow for flow in target.flows if recorded.counts[flow].count]
        if not set(exercised) <= set(NOT_RECORDED):
            assert any(map(kept, target.flows)), target.name


def test_a_changed_input_is_found_where_it_matters(recorded: Recorded, tmp_path: Path) -> None:
    path = recorded.path
    with read(path) as found:
        start, entries, memory = found.start, b"".join(found.entries()), found.memory
    changed = tmp_path / "changed.rec"

    # A byte of data, which the guest only copies.
    at = entries.index(b"into the guest")
    rewrite(changed, start, entries[:at] + b"I" + entries[at + 1 :], memory)
    replayed = Replayed(changed)
    assert replayed.outcome is Outcome.PARTED
    where = re.search(r"up to instruction (\d+) .* before instruction (\d+)", replayed.text)
    assert where is not None, replayed.text
    same, parted = map(int, where.groups())
    assert turn_before(entries, at) == same < parted

    # All that came in is the same, but not the memory at the end.
    rewrite(changed, start, entries, bytes([1] * 32))
    replayed = Replayed(changed)
    assert replayed.outcome is Outcome.PARTED
    assert "memory" in replayed.text


def turn_before(entries: bytes, position: int) -> int:
    """Instructions at the last turn that begins before `position`."""
    at = found = 0
    while at < position:
        kind, length = struct.unpack_from("<BI", entries, at)
        if kind == 2:
            (found,) = struct.unpack_from("<Q", entries, at + 5)
        at += 5 + length
    return found


def rewrite(path: Path, start: recording.Start, entries: bytes, memory: bytes | None) -> None:
    """Makes a recording with other entries, and the memory that they should lead to."""
    writer = recording.Writer(path, start)
    source, sink = os.pipe()
    writer.take(source, Counters())
    with os.fdopen(sink, "wb") as pipe:
        pipe.write(entries)
    writer.finish(None)
    writer.close()
    content = path.read_bytes()[:-64] + (memory or bytes(32))
    path.write_bytes(content + hashlib.sha256(content).digest())


def test_a_replay_stops_and_shows_where_it_is(recorded: Recorded) -> None:
    path = recorded.path
    replayed = Replayed(path, until=20_000_000, trace=True)
    assert replayed.outcome is Outcome.UNTIL
    *steps, registers, last = replayed.text.splitlines()
    assert registers.startswith("rip 0x")
    assert int(last.split()[-1]) >= 20_000_000
    assert sum("Cpuid" in step for step in steps) > 10


def test_a_crash_is_recorded_and_replayed_by_commands(tmp_path: Path) -> None:
    path = tmp_path / "crash.rec"
    crash = "echo c > /proc/sysrq-trigger"
    done = run("run", "--record", str(path), "--console", "--", "sh", "-c", crash)
    assert (done.returncode, b"crashed" in done.stderr) == (125, True), done.stderr
    done = run("replay", str(path))
    assert done.returncode == 0, done.stderr
    assert b"Kernel panic" in done.stdout
    assert b"the same to the end" in done.stderr
    assert b"GuestCrash" in done.stderr
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    done = run("replay", str(path))
    assert (done.returncode, b"damaged" in done.stderr) == (125, True)
    done = run("run", "--record", str(path), "--processor", "kvm", "--", "true")
    assert (done.returncode, b"software processor" in done.stderr) == (125, True)
