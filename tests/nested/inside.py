"""Runs inside the nested machine: VMs on its genuine KVM; what they did goes to stdout as JSON."""

import hashlib
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

import teuthis
from teuthis import Disk
from teuthis.images import cache
from teuthis.root import processor

SHARED = 1 << 20


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _hypervisor() -> int:
    """The process id of the only VM's hypervisor process."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        if path.read_text().startswith("teuthis-hyperv"):
            return int(path.parent.name)
    raise LookupError("no hypervisor process runs")


def main() -> None:
    """One VM that does the main job, one that powers itself off, one that crashes."""
    seen: dict[str, object] = {"verdict": processor.kvm().reason or "usable"}
    started = time.monotonic()
    with teuthis.VM() as vm:
        seen["ready"] = round(time.monotonic() - started, 2)
        seen["processor"] = vm.processor
        seen["uptime"] = vm.run(["cut", "-d ", "-f1", "/proc/uptime"]).stdout.decode().strip()
        result = vm.run(["sh", "-c", "sha256sum; echo oops >&2; exit 3"], input=bytes(SHARED))
        seen["job"] = [result.exit_code, result.stdout.decode(), result.stderr.decode()]
        vm.write_file("/tmp/file", b"abc" * 10_000)
        seen["file"] = vm.read_file("/tmp/file") == b"abc" * 10_000
        seen["log"] = vm.run(["dmesg"]).stdout.decode()
        status = _status(_hypervisor())
        names = ("Seccomp", "NoNewPrivs", "CapEff", "CapBnd", "Threads")
        seen["walls"] = {name: status[name] for name in names}
        places = [str(path.readlink()) for path in Path(f"/proc/{_hypervisor()}/fd").iterdir()]
        seen["descriptors"] = sorted(place.partition(":[")[0] for place in places)
        flows = vm.flows().items()
        seen["flows"] = {name: [each.count, each.rejected] for name, each in flows if each.count}
    ends = {"power-off": "poweroff -f", "crash": "echo c > /proc/sysrq-trigger", "loop": ":"}
    for name, command in ends.items():
        try:
            with teuthis.VM() as vm:
                seen[name] = vm.run(["sh", "-c", command], timeout=60).exit_code
        except teuthis.VMError as error:
            seen[name] = type(error).__name__
    seen["several"] = _several(2)
    seen["four"] = _several(4)["processors"]
    seen["told"] = _told()
    seen["debian"] = _in_debian()
    print(json.dumps(seen))


def _in_debian() -> list[str]:
    """A Python program in Debian on two processors, a thread of work on each."""
    os.environ["TEUTHIS_DATA"] = "/tmp/data"
    with teuthis.VM("512M", image="debian", cpus=2) as vm:
        result = vm.run(["python3", "-c", HELLO], timeout=300)
        return [vm.processor, result.stdout.decode(), result.stderr.decode()]


HELLO = """
import hashlib, os, platform
from concurrent.futures import ThreadPoolExecutor
print("hello from", platform.freedesktop_os_release()["ID"], "on", os.cpu_count(), "processors")
with ThreadPoolExecutor(2) as pool:
    print(*{hash.hexdigest() for hash in pool.map(hashlib.sha256, [bytes(1 << 20)] * 2)})
"""


def _several(cpus: int) -> dict[str, object]:
    """A VM with several processors and a disk: its work, its interrupts, a copy of it."""
    disk = Path("/tmp/disk.img")
    disk.write_bytes(bytes(SHARED))
    with teuthis.VM(cpus=cpus, disks=[Disk(disk, read_only=True)]) as vm:
        seen: dict[str, object] = {"processors": _output(vm, "nproc").strip()}
        if cpus > 2:
            return seen
        seen["job"] = [_output(vm, f"taskset {1 << cpu} sha256sum /dev/sda") for cpu in range(cpus)]
        before = _interrupts(vm)
        seen["moved"] = _output(vm, MOVE)
        _output(vm, "echo 3 > /proc/sys/vm/drop_caches; cat /dev/sda > /dev/null")
        seen["spread"] = [now - then for then, now in zip(before, _interrupts(vm), strict=True)]
        status = _status(_hypervisor())
        seen["walls"] = {name: status[name] for name in ("Seccomp", "CapEff", "Threads")}
        tasks = Path(f"/proc/{_hypervisor()}/task").iterdir()
        seen["closed in"] = sorted(_status(int(task.name))["Seccomp"] for task in tasks)
        _output(vm, "echo kept > /tmp/file; (while :; do :; done) & taskset -p 2 $!")
        vm.snapshot("/tmp/snapshot")
        seen["goes on"] = _output(vm, "nproc; cat /tmp/file")
        flows = vm.flows()
        seen["refused"] = {name: each.rejected for name, each in flows.items() if each.rejected}
    with teuthis.VM.restore("/tmp/snapshot") as vm:
        seen["restored"] = [vm.processor, _output(vm, "nproc; cat /tmp/file; sha256sum < /dev/sda")]
        (copy,) = vm.fork()
        with copy:
            seen["copied"] = _output(copy, "nproc; cat /tmp/file")
    try:
        _foreign(Path("/tmp/snapshot"))
    except teuthis.SnapshotError as error:
        seen["foreign"] = str(error)
    return seen


def _told() -> list[str]:
    """Copies of a kernel that has a driver for the generation id: where each interrupt came.

    It is to come to processor 1, to which the kernel moves it when it comes the next time.
    """
    kernels = cache.directory("packages").glob("linux-image-*-amd64/boot/vmlinuz-*")
    (kernel,) = [kernel for kernel in kernels if "cloud" not in kernel.name]
    found = []
    with ExitStack() as machines:
        vm = machines.enter_context(teuthis.VM(cpus=2, kernel=kernel))
        _output(vm, f"{GED} echo 1 > /proc/irq/$1/smp_affinity_list")
        for times in (1, 2):
            found.append(_output(vm, f"{GED} echo $2 $3"))
            vm = machines.enter_context(vm.fork()[0])
            _output(vm, f"until [ $(dmesg | grep -c '{RESEEDED}') = {times} ]; do sleep 0.1; done")
        found.append(_output(vm, f"{GED} echo $2 $3"))
    return found


GED = "set -- $(grep ACPI:Ged /proc/interrupts | tr -d :);"
RESEEDED = "crng reseeded due to virtual machine fork"

MOVE = """
for channel in /sys/bus/vmbus/devices/*/channels/*; do
    case $(cat $channel/../../class_id) in
    *ba6163d9-04a1*) echo 1 > $channel/cpu; cat $channel/cpu ;;
    esac
done
"""
"""Moves the disk's channel to processor 1."""


def _output(vm: teuthis.VM, text: str) -> str:
    return vm.run(["sh", "-c", text], timeout=120).stdout.decode()


def _interrupts(vm: teuthis.VM) -> list[int]:
    """VMBus interrupts on each processor."""
    return [int(word) for word in _output(vm, "grep HYP: /proc/interrupts").split()[1:-3]]


def _foreign(snapshot: Path) -> None:
    """As if the host that it was made on had other features."""
    manifest = json.loads((snapshot / "snapshot.json").read_text())
    state = bytearray((snapshot / "hypervisor").read_bytes())
    state[FEATURES] ^= 1
    state[-8:] = _checksum(state[:-8]).to_bytes(8, "little")
    (snapshot / "hypervisor").write_bytes(state)
    manifest["hypervisor"] = hashlib.sha256(state).hexdigest()
    (snapshot / "snapshot.json").write_text(json.dumps(manifest))
    teuthis.VM.restore(snapshot).close()


FEATURES = 24 + 8 + 1
"""In the state, behind head, number of processors and their kind."""


def _checksum(data: bytes | bytearray) -> int:
    """FNV-1a, as in `hypervisor/src/record.rs`."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return value


if __name__ == "__main__":
    main()
