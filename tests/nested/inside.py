"""Runs inside the nested machine: VMs on its genuine KVM; what they did goes to stdout as JSON."""

import json
import time
from pathlib import Path

import teuthis
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
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
