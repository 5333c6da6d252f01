"""The catalogue of attacks, from inside each process, behind all walls and without the filter."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import F_DUPFD, fcntl

import pytest

from teuthis.jail.kernel import call as kernel
from teuthis.jail.walls import NAMES

from .catalogue import CATALOGUE, LEFT_OPEN
from .prison import IS_ROOT, SIGSYS, Prison

SECRET_KEY = b"teuthis-test-secret"
SHARED_MEMORY_KEY = 0x7E07
BAD_ADDRESS = "errno 14"
"""What a call says that was permitted, and only then looked at our made-up pointers."""


@contextmanager
def bait() -> Iterator[None]:
    """Things of the host that an attacker would find: an open file, a key, shared memory."""
    opened = os.open("/etc/passwd", os.O_RDONLY)
    assert fcntl(opened, F_DUPFD, LEFT_OPEN) == LEFT_OPEN, "somebody else's descriptor"
    os.close(opened)
    # A session keyring that every process started from here possesses.
    kernel("keyctl", 1, None)
    kernel("add_key", b"user", SECRET_KEY, b"secret", 6, -3)
    shared = kernel("shmget", SHARED_MEMORY_KEY, 4096, 0o1666)
    try:
        yield
    finally:
        kernel("shmctl", shared, 0, None)
        os.close(LEFT_OPEN)


@pytest.fixture(autouse=True)
def _bait() -> Iterator[None]:
    with bait():
        yield


def test_everything_fails(prison: Prison) -> None:
    answers = prison.attempt([attack.calls for attack in CATALOGUE], given=[LEFT_OPEN])
    worked = {
        attack.goal: answer
        for attack, answer in zip(CATALOGUE, answers, strict=True)
        # A descriptor that was left open is refused by number, where reading as such is allowed.
        if answer not in (f"killed {SIGSYS}", "errno 9")
    }
    assert not worked


def test_everything_but_new_namespaces_fails_without_the_filter(prison: Prison) -> None:
    attacks = [attack for attack in CATALOGUE if attack.second_wall]
    answers = prison.attempt(
        [attack.calls for attack in attacks], without=["system-calls"], given=[LEFT_OPEN]
    )
    worked = {
        attack.goal: answer
        for attack, answer in zip(attacks, answers, strict=True)
        if not answer.startswith("errno ") or answer == BAD_ADDRESS
    }
    assert not worked


def test_the_attacks_are_real() -> None:
    """Outside, most of them work, or the tests above would prove nothing."""
    goals = {
        "read a file of the host",
        "list the root directory",
        "look for a file",
        "use a descriptor left open",
        "signal the process that started it",
        "make a user namespace",
        "find a key of the session that started it",
        "find shared memory of the host",
    }
    attacks = [attack for attack in CATALOGUE if attack.goal in goals]
    prison = Prison("hypervisor", "root" if IS_ROOT else "user")
    answers = prison.attempt([attack.calls for attack in attacks], without=NAMES, given=[LEFT_OPEN])
    assert all(answer.startswith("done ") for answer in answers), answers
    assert len(answers) == len(goals)
