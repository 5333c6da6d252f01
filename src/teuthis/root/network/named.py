"""Named networks: a switch for each name and user, started by its first VM, ended with its last.

A network is three files in a directory that only its user can enter, so other users' VMs cannot
join: NAME.socket, on which the switch takes VMs; NAME.pid, with its process id, locked (shared)
for each VM of the network as long as it lives; NAME.lock, held by whoever joins or leaves, which
keeps two first VMs from starting two switches. Who leaves last ends the switch and removes all
three. What is left of a network whose end nobody has seen goes when a VM joins any other.
"""

import fcntl
import ipaddress
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from teuthis import data
from teuthis.errors import ConfigurationError, HostError
from teuthis.flows import Counters
from teuthis.jail import identity
from teuthis.root.descriptors import Descriptors
from teuthis.root.network.wanted import Wanted
from teuthis.switch.protocol import ANSWER_BYTES, Answer, Member, Outcome, SwitchConfig
from teuthis.switch.switch import SUBNET

__all__ = ["SUBNET", "join"]

_PATIENCE: Final = 20.0
"""Seconds for a switch to start and to answer."""
_AT_ONCE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_WHY: Final = {
    Outcome.MALFORMED: "its switch did not understand the request: is it of another version?",
    Outcome.MAC_TAKEN: "another VM there has this MAC address: choose another, or none",
    Outcome.ADDRESS_TAKEN: "another VM there has this address",
    Outcome.FULL: "it has as many VMs as it can",
    Outcome.OTHER_MTU: "its VMs have another MTU: say the same",
}


def join(
    wanted: Wanted,
    name: str,
    held: Descriptors,
    frames: int,
    counters: int,
    allow_missing_walls: frozenset[str],
) -> tuple[ipaddress.IPv4Address, int]:
    """Plugs a VM into network `name`; the address that it has there, and the switch's process id.

    It is in the network until `held` closes.

    Raises:
        ConfigurationError: the network does not take it.
        HostError, OSError: there can be no such network here.
    """
    member = Member(
        mac=wanted.mac,
        mtu=wanted.mtu,
        bytes_rate=wanted.bytes_rate,
        frames_rate=wanted.frames_rate,
    )
    request = msgspec.json.encode(member)
    directory = _directory()
    _sweep(directory)
    path = directory / f"{name}.socket"
    with _locked(path):
        answer = _ask(path, request, [frames, counters])
        if answer is None:
            # Until it answers, the switch may not run under its user id yet.
            with identity.lease() as own:
                _start(path, own.worker, allow_missing_walls)
                answer = _ask(path, request, [frames, counters])
        held.callback(_leave, path)
        if answer is None:
            raise HostError(f"the switch of network {name} did not start: see `teuthis doctor`")
        membership = held.own(os.open(path.with_suffix(".pid"), os.O_RDONLY | os.O_CLOEXEC))
        fcntl.flock(membership, fcntl.LOCK_SH)
        pid = int(os.read(membership, 16))
    return _judged(answer, name, counters), pid


def _judged(packet: bytes, name: str, page: int) -> ipaddress.IPv4Address:
    """The address in an answer. Raises `ConfigurationError`, `HostError`."""
    counters = Counters(page)
    try:
        try:
            answer = Answer.decode(packet)
        except ValueError as error:
            counters.reject("switch.joined", "malformed")
            raise HostError(f"the switch of network {name} answered nonsense: {error}") from error
        if answer.outcome is not Outcome.JOINED:
            raise ConfigurationError(f"cannot join network {name}: {_WHY[answer.outcome]}")
        address = ipaddress.IPv4Address(answer.address)
        if address not in SUBNET:
            counters.reject("switch.joined", "address")
            raise HostError(f"the switch of network {name} gave an address outside {SUBNET}")
        counters.accept("switch.joined", ANSWER_BYTES)
    finally:
        counters.close()
    return address


def _directory() -> Path:
    """Where this user's switches are, and nobody else gets in. Raises `HostError`."""
    if os.geteuid() == 0:
        path = Path("/run/teuthis/networks")
    else:
        path = platformdirs.user_runtime_path("teuthis") / "networks"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.see_private(path, stat.S_ISDIR)
    return path


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Nobody else starts or ends the switch at `path` meanwhile; without one, no file stays.

    Raises:
        BlockingIOError, FileNotFoundError: with `wait=False`; somebody else is at it, or was.
    """
    with Descriptors() as held:
        held.own(_lock(path.with_suffix(".lock"), wait=wait))
        try:
            yield
        finally:
            if not _answers(path):
                for suffix in (".socket", ".pid", ".lock"):  # the lock last: it guards the others
                    path.with_suffix(suffix).unlink(missing_ok=True)


def _lock(path: Path, *, wait: bool) -> int:
    """The lock file, held. One that its holder removed while we waited guards nothing."""
    while True:
        with Descriptors() as opened:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if wait else 0)
            lock = opened.own(os.open(path, flags, 0o600))
            fcntl.flock(lock, fcntl.LOCK_EX if wait else _AT_ONCE)
            if os.fstat(lock).st_nlink:
                opened.pop_all()
                return lock


def _answers(path: Path) -> bool:
    """Whether a switch has the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as requests:
        try:
            requests.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _sweep(directory: Path) -> None:
    """Removes what switches left that were killed, or whose VMs' owners were."""
    for lock in directory.glob("*.lock"):
        with (
            suppress(BlockingIOError, FileNotFoundError),
            _locked(lock.with_suffix(".socket"), wait=False),
        ):
            pass


def _leave(path: Path) -> None:
    """Ends the switch at `path` if no VM is there any more.

    It would end by itself, but only when it sees its last VM gone.
    """
    try:
        with _locked(path), Descriptors() as opened:
            pid = opened.own(os.open(path.with_suffix(".pid"), os.O_RDONLY | os.O_CLOEXEC))
            fcntl.flock(pid, _AT_ONCE)
            switch = opened.own(os.pidfd_open(int(os.read(pid, 16))))
            if _answers(path):  # so it lived when its pidfd was opened: that is not another's
                signal.pidfd_send_signal(switch, signal.SIGKILL)
                select.select([switch], [], [], _PATIENCE)
    except (OSError, ValueError):
        pass  # others are there, or it has ended; if neither, it ends itself and is swept


def _ask(path: Path, request: bytes, descriptors: list[int]) -> bytes | None:
    """The answer of the switch at `path`; None: there is none, or it is just ending."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as requests:
        requests.settimeout(_PATIENCE)
        near.settimeout(_PATIENCE)
        try:
            requests.connect(str(path))
            socket.send_fds(requests, [request], [*descriptors, far.fileno()])
            far.close()
            packet = near.recv(2 * ANSWER_BYTES)
        except (FileNotFoundError, ConnectionError):
            return None
    return packet or None


def _start(path: Path, uid: int | None, allow_missing_walls: frozenset[str]) -> None:
    """Starts a switch that takes VMs at `path`. The lock is held."""
    with Descriptors() as given:
        for suffix in (".socket", ".pid"):  # VMs of a switch that was killed are not this one's
            path.with_suffix(suffix).unlink(missing_ok=True)
        requests = given.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        requests.bind(str(path))
        config = SwitchConfig(
            requests=requests.fileno(), uid=uid, allow_missing_walls=allow_missing_walls
        )
        document = given.document("switch", msgspec.json.encode(config))
        # It becomes nobody's child at once: it may outlive us, as long as a VM needs it.
        starter = subprocess.Popen(
            [sys.executable, "-I", "-m", "teuthis.switch", "--config-fd", str(document)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("TEUTHIS_DEBUG") else subprocess.DEVNULL,
            pass_fds=(document, requests.fileno()),
            start_new_session=True,
            env={},
            cwd="/",
        )
        try:
            starter.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            starter.kill()
        assert starter.stdout is not None
        with starter.stdout as says:
            path.with_suffix(".pid").write_bytes(os.read(says.fileno(), 16))
