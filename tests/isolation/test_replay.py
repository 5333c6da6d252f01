"""A process that replays a recording, seen from outside while it does."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import teuthis
from teuthis.jail.surface import surface

from ..guests.processes import CLI, await_true, children
from .test_system_calls import REPLAY
from .test_walls import needs_root, status

pytestmark = needs_root


@contextmanager
def replaying(path: Path) -> Iterator[int]:
    """The process id of one that stands still, because nobody reads what it writes."""
    with subprocess.Popen(
        [*CLI, "replay", "--trace", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as command:
        try:
            await_true(lambda: _locked(command.pid))
            (process,) = children(command.pid)
            yield process
        finally:
            command.kill()


def _locked(command: int) -> bool:
    """Whether its one child has raised the last wall."""
    found = children(command)
    return len(found) == 1 and all(surface(pid).filters for pid in found)


def test_nothing_is_open_but_the_recording_and_what_it_says(tmp_path: Path) -> None:
    recorded = tmp_path / "run.rec"
    with teuthis.VM("128M", record=recorded):
        pass
    with replaying(recorded) as pid:
        seen = surface(pid)
        files = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert status(pid)["Uid"].split()[0] != str(os.getuid())
    assert seen.program.startswith("teuthis-hyperv")
    assert seen.system_calls == len(REPLAY)
    assert (seen.threads, seen.filters, seen.no_new_privileges) == (1, 1, True)
    assert (seen.capabilities, seen.bounding_capabilities, seen.writable_mounts) == (0, 0, 0)
    assert seen.namespaces == ["user", "mnt", "net", "ipc", "uts", "cgroup"]
    kinds = sorted(name.partition(":")[0] for name in files)
    assert kinds == ["/dev/null", "/dev/null", "/dev/null", "pipe", "pipe", "pipe"]
