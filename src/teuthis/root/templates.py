"""Ready templates: a VM that booted once and is kept for others to start from.

They live in the cache, as snapshots: one for each image, amount of memory, interpreter that waits
in it, if any, and state of the programs that made it. Its guest has all drivers and no device but
its image's own disk, so that a VM that starts from it can be given others. A template's memory is
hashed when it is made; afterwards it is enough that the file is the same one, unchanged (inode,
size, time of its last change, which nobody can set).
"""

import fcntl
import functools
import hashlib
import os
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
from teuthis.images.store import Image
from teuthis.root import snapshot
from teuthis.root.saved import Saved

_KEPT: Final = 8
"""Templates that stay in the cache, some 60 MB each."""
_CHECKED: Final = "checked.json"


def open_template(
    image: Image, memory: int, warm: str | None, make: Callable[[Path], None]
) -> Saved | None:
    """The template of an image with so many bytes of memory, made if there is none or it is bad.

    `warm` names the interpreter that waits in it. `make` starts a VM and saves it to the directory
    it is given; what it raises is raised here. None if this host cannot keep a template: its disk
    is full, for instance.
    """
    directory = None
    try:
        directory = cache.directory("templates") / _key(image, memory, warm)
        with _alone(directory):
            try:
                if directory.exists():
                    return _read(directory)
            except SnapshotError as error:
                _warn(f"{error}; it is made anew")
                _remove_files(directory)
            make(directory)
            _forget_old(directory)
            return _read(directory)
    except (SnapshotError, OSError) as error:
        _warn(f"no template could be kept, so the VM boots: {error}")
        return None


def forget(image: str) -> None:
    """Removes the templates of the image with that name."""
    for each in cache.directory("templates").iterdir():
        if each.name.startswith(f"{image}@"):
            _remove(each)


def _key(image: Image, memory: int, warm: str | None) -> str:
    """Names all that the state of a VM after its boot follows from."""
    files = [image.kernel, *_programs(), *([image.disk] if image.disk else [])]
    made_from = [memory, warm, *map(_stamp, files), _package()]
    return f"{image.name}@{_digest(made_from)[:32]}"


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _programs() -> Iterator[Path]:
    """What makes and runs a VM."""
    yield programs.find(programs.HYPERVISOR)
    yield programs.find(programs.GUEST_AGENT)
    yield Path(REGISTER_PATH)


@functools.cache
def _package() -> str:
    """A digest of this package, as this process has loaded it."""
    return _digest(sorted(map(_stamp, _sources(str(Path(teuthis.__file__).parent)))))


def _sources(directory: str) -> Iterator[os.DirEntry[str]]:
    """All modules below a directory; each command that starts a VM looks for them."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _sources(entry.path)
            elif entry.name.endswith(".py"):
                yield entry


def _stamp(path: Path | os.DirEntry[str]) -> tuple[str, int, int, int]:
    found = path.stat()
    return os.fspath(path), found.st_size, found.st_mtime_ns, found.st_ino


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
        _remove(old)


def _remove(template: Path) -> None:
    _remove_files(template)
    template.with_name(f".{template.name}.lock").unlink(missing_ok=True)


def _remove_files(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def _warn(text: str) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", text)
