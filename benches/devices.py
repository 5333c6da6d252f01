"""Disk and network, side by side in one run: Teuthis's synthetic devices, QEMU TCG's virtio.

The same kernel and the same static program in both machines; each disk is a raw file of the host,
read and written past the guest's cache; each network ends in sockets of the host's loopback,
through passt for us and slirp for QEMU. `make bench` runs it.
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from machines import COMMAND_LINE, MEMORY, parse, qemu_initrd, run_qemu, work_program

import teuthis
from teuthis.images.boot import boot_files
from teuthis.images.kernel import default_kernel
from teuthis.images.modules import ModuleTree
from teuthis.root.loader.kernel import open_kernel

DISK = ("disk-read", "disk-write", "disk-random")
NETWORK = ("net-send", "net-receive")
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net")
# The cloud kernel finds no device on a microvm without ACPI: an ordinary PC instead.
OPTIONS = COMMAND_LINE.replace("pci=off ", "")
SIZE = 160 << 20
SENT = 64 << 20
TEUTHIS_GATEWAY, QEMU_GATEWAY = "10.126.7.1", "10.0.2.2"


def serve(send: bool) -> int:
    """The port of a server that sends, or takes and then says so, once a connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if send:
                    connection.sendall(bytes(SENT))
                else:
                    while connection.recv(1 << 20):
                        pass
                    connection.sendall(b"!")

    threading.Thread(target=loop, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def run_teuthis(disk: Path, ports: dict[str, int]) -> dict[str, float]:
    """Nanoseconds per item of each workload."""
    output = b""
    with teuthis.VM(
        MEMORY, disks=[teuthis.Disk(disk)], network="user", host_ports=list(ports.values())
    ) as vm:
        vm.write_file("/bin/bench-work", work_program().read_bytes(), mode=0o755)
        places = dict.fromkeys(DISK, "/dev/sda")
        places |= {work: f"{TEUTHIS_GATEWAY}:{port}" for work, port in ports.items()}
        for work, place in places.items():
            output += vm.run(["/bin/bench-work", work, place], timeout=600, check=True).stdout
    return parse(output.decode())


def qemu_commands(ports: dict[str, int]) -> list[str]:
    return [
        "ip link set eth0 up",
        "ip addr add 10.0.2.15/24 dev eth0",
        *(f"/bin/bench-work {work} /dev/vda" for work in DISK),
        *(f"/bin/bench-work {work} {QEMU_GATEWAY}:{port}" for work, port in ports.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each machine (3)")
    options = parser.parse_args()
    ports = {work: serve(send=work == "net-receive") for work in NETWORK}
    files = boot_files()
    modules = default_kernel().modules
    assert modules is not None
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        disk = directory / "disk"
        disk.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
        kernel = directory / "vmlinux"
        kernel.write_bytes(open_kernel(files.kernel).data)
        drivers = ModuleTree(modules).load_order(DRIVERS)
        initrd = qemu_initrd(directory / "initrd", qemu_commands(ports), drivers)
        devices = [
            *("-drive", f"file={disk},format=raw,if=none,id=disk,cache=writeback"),
            *("-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        ]
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for turn in range(options.rounds):
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
            ours.append(run_teuthis(disk, ports))
            theirs.append(run_qemu(kernel, initrd, *devices, machine="pc", options=OPTIONS).rates)
    print(f"{'':12}{'teuthis':>12}{'QEMU TCG':>12}{'ours/QEMU':>12}")
    for work in (*DISK, *NETWORK):
        rates = [statistics.median(each[work] for each in side) for side in (ours, theirs)]
        unit = "k requests/s" if work == "disk-random" else "MB/s"
        factor = 1e6 if work == "disk-random" else 1e3
        print(
            f"{work:12}{factor / rates[0]:12.4g}{factor / rates[1]:12.4g}"
            f"{rates[0] / rates[1]:12.2f}   {unit}; ratio of times"
        )


if __name__ == "__main__":
    main()
