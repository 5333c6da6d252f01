"""`python -m fuzz.recorded [RECORDING]`: cuts a recording into seeds, in place of those kept.

Without one, a Debian that boots, uses a disk and a network and shuts down is recorded first.
"""

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import teuthis
from fuzz.recorded import intercepts
from fuzz.recorded.replay import Replay
from fuzz.recorded.seeds import DIRECTORY, Keeper
from fuzz.recorded.traffic import Traffic, View
from teuthis.root import recording
from teuthis.worker import link

_CODE = 512
"""Bytes of code from the first instruction on."""
_WORK = """
mke2fs -q /dev/sdb && mount /dev/sdb /mnt && cp -r /etc/apt /mnt && sync && rm -r /mnt/apt
fstrim /mnt && umount /mnt && blkdiscard -f /dev/sdb
ip address; exec 3<>/dev/tcp/192.0.2.1/80; echo to stderr >&2; exit 3
"""
"""With a time limit: nobody answers at that address."""


def record(path: Path) -> None:
    """A short life of a Debian that does a little of everything."""
    disk = path.with_suffix(".disk")
    disk.write_bytes(bytes(8 << 20))
    with teuthis.VM(
        "256M",
        image="debian",
        disks=[teuthis.Disk(disk)],
        network="user",
        console=path.with_suffix(".console").open("wb"),
        record=path,
    ) as vm:
        vm.run(["timeout", "4", "bash", "-c", _WORK])
        vm.run(["sleep", "9"])  # heartbeats, and time
        vm.run(["cat"], input=b"into the guest")
        vm.write_file("/root/file", bytes(100_000))
        vm.read_file("/root/file")
        with suppress(teuthis.CommandNotFound):
            vm.run(["no-such-program"])
        vm.shutdown()


def cut(path: Path, keeper: Keeper) -> None:
    """Everything that can be seen of a recorded machine."""
    with recording.read(path) as found:
        replay = Replay(found)
        try:
            view = View(replay.memory, replay.memory_size)
            code = replay.start.boot.rip
            keeper.take("instruction.decode", view.bytes[code : code + _CODE])
            keeper.take("link.start", link.encode(link.START)[:16])
            traffic = Traffic(view, keeper.take)
            for turn in replay.turns():
                traffic.see(turn)
        finally:
            replay.close()
    with recording.read(path) as found:
        for each in intercepts.of(found):
            keeper.take(each.flow, each.encode())


def main() -> int:
    """Writes the seeds."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.recorded", description=__doc__)
    parser.add_argument("recording", nargs="?", type=Path)
    options = parser.parse_args()
    keeper = Keeper()
    with tempfile.TemporaryDirectory() as scratch:
        path = options.recording
        if path is None:
            path = Path(scratch) / "debian.rec"
            record(path)
        cut(path, keeper)
    size = keeper.write()
    print(f"{size:,} bytes of seeds in {DIRECTORY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
