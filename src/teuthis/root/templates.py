"""Ready templates: a VM that booted once and is kept for others to start from.

They live in the cache, one for each configuration and each state of the programs that made it, as
snapshots. A template's memory is hashed when it is made; afterwards it is enough that the file is
the same one, unchanged (inode, size, time of its last change, which nobody can set).
"""

import fcntl
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

import teuthis
from teuthis import programs
from teuthis.errors import SnapshotError
from teuthis.flows import REGISTER_PATH
from teuthis.images import cache
from teuthis.root import snapshot
from teuthis.root.saved import Saved

_KEPT: Final = 4
"""Templates that stay in the cache, some 60 MB each."""
_CHECKED: Final = "checked.json"
_log = logging.getLogger(__name__)


def open_template(kernel: Path, memory_size: int, make: Callable[[Path], None]) -> Saved:
    """The template for a kernel and an amount of memory, made if there is none, or it is damaged.

    Args:
        kernel: the file that it boots.
        memory_size: in bytes.
        make: boots a VM and saves it to the directory it is given.

    Raises:
        SnapshotError: it cannot be saved, or not be read.
        VMError, HostError, …: of `make`.
    """
    directory = cache.directory("templates") / _key(kernel, memory_size)
    with _alone(directory):
        try:
            if directory.exists():
                return _read(directory)
        except SnapshotError as error:
            _log.warning("%s; it is made anew", error)
            shutil.rmtree(directory, ignore_errors=True)
        make(directory)
        _forget_old(directory)
        return _read(directory)


def _key(kernel: Path, memory_size: int) -> str:
    """Names all that the state of a VM after its boot follows from."""
    found = [memory_size, _stamp(kernel), *map(_stamp, _programs()), *_package()]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:32]


def _programs() -> Iterator[Path]:
    """What makes and runs a VM."""
    yield programs.find(programs.HYPERVISOR)
    yield programs.find(programs.GUEST_AGENT)
    yield REGISTER_PATH


@functools.cache
def _package() -> list[tuple[str, int, int]]:
    """This package, as this process has loaded it."""
    return [_stamp(path) for path in sorted(Path(teuthis.__file__).parent.rglob("*.py"))]


def _stamp(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Only one process makes a template; the others wait and use it."""
    with directory.with_name(f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(directory: Path) -> Saved:
    checked = directory / _CHECKED
    found: dict[str, list[int]] = {}
    try:
        known = msgspec.json.decode(checked.read_bytes(), type=dict[str, list[int]])
    except (OSError, msgspec.MsgspecError):
        known = {}

    def trusted(name: str, file: int) -> bool:
        at = os.fstat(file)
        found[name] = [at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns]
        return known.get(name) == found[name]

    saved, _ = snapshot.read(directory, trusted=trusted)
    if not checked.exists():
        checked.write_bytes(msgspec.json.encode(found))
    os.utime(directory)
    return saved


def _forget_old(newest: Path) -> None:
    """Removes all but the templates that were used last."""
    others = [each for each in newest.parent.iterdir() if each.is_dir() and each != newest]
    others.sort(key=lambda each: each.stat().st_mtime, reverse=True)
    for old in others[_KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
        old.with_name(f".{old.name}.lock").unlink(missing_ok=True)
