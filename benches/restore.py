"""QEMU's own template: a guest that booted once and stands before its next command, restored."""

import json
import os
import select
import socket
import subprocess
import time
from pathlib import Path

from benches.machines import COMMAND_LINE, END_MARK, INIT_MARK, MEMORY, MICROVM, qemu_initrd

# A shell that runs a program for each line it reads, as our agent does for each request.
_SERVE = f"while read line; do /bin/busybox true; echo {END_MARK} answer; done"


class Template:
    """The files of one, in a directory."""

    def __init__(self, directory: Path, kernel: Path) -> None:
        """Boots a guest, runs a program in it and saves it."""
        self._kernel = kernel
        self._initrd = qemu_initrd(directory / "serving", [_SERVE], {})
        self._state = directory / "state"
        control = directory / "qmp"
        process = self._start("-qmp", f"unix:{control},server=on,wait=off")
        try:
            self._answer(process, INIT_MARK)
            self._ask(process)
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.connect(str(control))
                self._save(monitor)
        finally:
            _end(process)

    def restore(self) -> float:
        """Seconds from the start of a QEMU that restores it to a program's end in there."""
        start = time.perf_counter()
        process = self._start("-incoming", f"exec:cat {self._state}")
        try:
            self._ask(process)
            return time.perf_counter() - start
        finally:
            _end(process)

    def boot(self) -> float:
        """The same for one that boots."""
        start = time.perf_counter()
        process = self._start()
        try:
            self._answer(process, INIT_MARK)
            self._ask(process)
            return time.perf_counter() - start
        finally:
            _end(process)

    def _start(self, *options: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg", "-M", MICROVM, "-cpu", "qemu64,+rdrand",
                "-m", MEMORY, "-smp", "1", "-nodefaults", "-display", "none", "-serial", "stdio",
                "-no-reboot", "-kernel", str(self._kernel), "-initrd", str(self._initrd),
                "-append", COMMAND_LINE, *options,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def _ask(self, process: "subprocess.Popen[bytes]") -> None:
        """Has a program run. What is typed before a state is loaded is lost: it is typed again."""
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        while f"{END_MARK} answer".encode() not in said:
            process.stdin.write(b"\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], 0.01)[0]:
                said += os.read(process.stdout.fileno(), 65536)
            if process.poll() is not None:
                raise SystemExit("QEMU ended before it answered")

    @staticmethod
    def _answer(process: "subprocess.Popen[bytes]", mark: str) -> None:
        assert process.stdout is not None
        said = b""
        while mark.encode() not in said:
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                raise SystemExit(f"QEMU ended before it said {mark!r}")
            said += piece

    def _save(self, monitor: socket.socket) -> None:
        replies = monitor.makefile()
        replies.readline()

        def ask(command: str, **arguments: str) -> object:
            request = {"execute": command, "arguments": arguments}
            monitor.sendall(json.dumps(request).encode() + b"\n")
            for line in replies:
                reply = json.loads(line)
                if "return" in reply or "error" in reply:
                    return reply.get("return", reply)
            raise SystemExit("QEMU's monitor is gone")

        ask("qmp_capabilities")
        ask("migrate", uri=f"exec:cat > {self._state}")
        while True:
            state = ask("query-migrate")
            assert isinstance(state, dict), state
            if state.get("status") == "completed":
                return
            if state.get("status") == "failed":
                raise SystemExit(f"QEMU could not save its guest: {state}")
            time.sleep(0.02)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()
