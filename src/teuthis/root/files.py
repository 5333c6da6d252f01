"""Files of a guest, in and out."""

import errno

from teuthis.errors import FileError, NoAgent, OutputTooLarge, VMError
from teuthis.protocol import ReadFile, Status, StatusKind, WriteFile
from teuthis.root.caller import Caller
from teuthis.root.process import NO_AGENT
from teuthis.root.streams import Exchange, Pipes


def write_file(machine: Caller, path: str, data: bytes, mode: int) -> None:
    """Creates or replaces a file of the guest.

    Raises:
        FileError: the guest refused.
        VMError: the VM is no more.
    """
    with Pipes() as pipes:
        source = pipes.writer()
        answer = machine.submit(lambda number: WriteFile(number, path, mode), pipes.given)
        pipes.sent()
        Exchange(data, source, [], 0).run()
        _check(answer.finished.result(), "write", path, len(data))


def read_file(machine: Caller, path: str, max_size: int) -> bytes:
    """The content of a file of the guest.

    Raises:
        FileError: the guest refused.
        OutputTooLarge: it has more than `max_size` bytes.
        VMError: the VM is no more.
    """
    with Pipes() as pipes:
        sink = pipes.reader()
        answer = machine.submit(lambda number: ReadFile(number, path), pipes.given)
        pipes.sent()
        exchange = Exchange(b"", None, [sink], max_size)
        if not exchange.run():
            raise OutputTooLarge(
                f"{path!r} has more than {max_size} bytes: raise `max_size`, "
                "or read it in pieces with `popen`"
            )
        content = exchange.output(sink)
        _check(answer.finished.result(), "read", path, len(content))
    return content


def _check(status: Status, action: str, path: str, size: int) -> None:
    if status.kind is StatusKind.FAILED and status.value == errno.ENOTCONN:
        raise NoAgent(NO_AGENT)
    if status.kind is StatusKind.FAILED:
        raise FileError(action, path, status.value)
    if status.value != size:
        raise VMError(
            f"{size} bytes of {path!r} were to be moved and the worker counted {status.value}: "
            "close this VM"
        )
