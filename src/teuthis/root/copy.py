"""Files and directories from this host into a guest, and back."""

import os
import stat
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from teuthis.errors import CommandError, ConfigurationError, HostError, OutputTooLarge
from teuthis.protocol import ROOT
from teuthis.root.console import harmless
from teuthis.root.process import PIPE, STDOUT, Process
from teuthis.root.tar import ArchiveError, Member, Reader, Truncated
from teuthis.root.unpack import Unpacker

if TYPE_CHECKING:
    from teuthis.root.guest import Guest

_KEPT: Final = 4096
_CHUNK: Final = 64 * 1024
# Where a path that is a link leads to is what is packed, as `cp` has it.
_PACK: Final = 'p=$(readlink -f "$1") && exec tar -c -f - -C "${p%/*}/" -- "${p##*/}"'
_KINDS: Final = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)


def copy_in(guest: "Guest", source: Path, target: str) -> None:
    """Copies a file or a directory of this host to a path of the guest: see `Guest.copy_in`."""
    try:
        real = source.resolve(strict=True)
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror}") from error
    name = source.absolute().name or real.name
    directory = target
    if guest.run(["test", "-d", target], user=ROOT).exit_code != 0:
        directory, _, name = target.rpartition("/")
        if not name:
            raise ConfigurationError(f"{target!r} is not a directory of the guest")
    with guest.popen(
        ["tar", "-x", "-f", "-", "-C", directory or "/"], stdin=PIPE, stderr=STDOUT, user=ROOT
    ) as process:
        words = _Words(process.stdout)
        with suppress(BrokenPipeError):  # the guest's `tar` says why
            _pack(real, name, process)
        _check(process, words, f"unpack {source.name!r}")


def _pack(source: Path, name: str, process: Process) -> None:
    assert process.stdin is not None

    def as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    try:
        for path in (source, *source.rglob("*")):
            if not any(is_kind(path.lstat().st_mode) for is_kind in _KINDS):
                raise ConfigurationError(
                    f"{path} is a device, a pipe or a socket, and cannot be copied into a guest"
                )
        with (
            process.stdin,
            tarfile.open(fileobj=process.stdin, mode="w|", format=tarfile.GNU_FORMAT) as archive,
        ):
            archive.add(source, name, filter=as_root)
    except BrokenPipeError:
        raise
    except OSError as error:
        process.kill()
        raise HostError(f"{error.filename or source}: {error.strerror or error}") from error


def copy_out(
    guest: "Guest",
    source: str,
    target: Path,
    max_size: int,
    left_out: Callable[[str], None],
) -> None:
    """Copies a file or a directory of the guest to a path of this host: see `Guest.copy_out`.

    `left_out` is called with the name, harmless for terminals, of each file that is left out.
    """
    name = source.rstrip("/").rpartition("/")[2]
    if not name or name in (".", ".."):
        raise ConfigurationError(f"{source!r}: name a file or a directory of the guest")
    into, called = (target, name) if target.is_dir() else (target.absolute().parent, target.name)
    try:
        directory = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"{into}: {error.strerror}") from error
    try:
        process = guest.popen(["sh", "-c", _PACK, "sh", source], user=ROOT)
        assert process.stdout is not None
        words = _Words(process.stderr)
        reader = Reader(process.stdout, max_size)

        def name_it(member: Member) -> None:
            guest.count("client.archive", rejected="left-out")
            left_out(harmless(b"/".join(member.path)))

        with process:
            try:
                Unpacker(directory, os.fsencode(called), name_it).run(reader)
                reader.finish()
            except Truncated as error:  # the guest's `tar` gave up, and says why
                _check(process, words, f"pack {source!r}")
                raise _refused(guest, source, error) from error
            except ArchiveError as error:
                if reader.too_large:
                    raise OutputTooLarge(
                        f"{source!r} has more than {max_size} bytes: allow more (--max-size)"
                    ) from error
                raise _refused(guest, source, error) from error
            except OSError as error:
                place = harmless(os.fsencode(error.filename or called))
                raise HostError(f"{into}/…/{place}: {error.strerror}") from error
            _check(process, words, f"pack {source!r}")
            guest.count("client.archive", reader.taken)
    finally:
        os.close(directory)


def _refused(guest: "Guest", source: str, error: ArchiveError) -> CommandError:
    guest.count("client.archive", rejected="malformed")
    return CommandError(f"what the guest sent for {source!r} was refused: {error}")


class _Words:
    """What a program says on a stream: the beginning is kept, all is read."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._descriptor = os.dup(stream.fileno())
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._descriptor, _CHUNK):
            self._kept += data[: _KEPT - len(self._kept)]
        os.close(self._descriptor)

    def said(self) -> str:
        """All of the beginning, when the stream has ended; harmless."""
        self._thread.join()
        return harmless(self._kept).strip()


def _check(process: Process, words: _Words, action: str) -> None:
    code = process.wait()
    if code != 0:
        raise CommandError(f"the guest could not {action}: {words.said() or f'exit code {code}'}")
