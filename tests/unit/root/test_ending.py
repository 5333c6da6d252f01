import pytest

from teuthis import errors
from teuthis.protocol import Ended
from teuthis.root.ending import ending


@pytest.mark.parametrize("reason", [*Ended, None])
def test_every_reason_has_an_error_that_says_what_to_do(reason: Ended | None) -> None:
    error = ending(reason, "")
    assert isinstance(error, errors.VMError | errors.SnapshotError)
    assert str(error)


@pytest.mark.parametrize("reason", [Ended.RESET, Ended.HALTED, Ended.TRIPLE_FAULT])
def test_a_panic_before_the_crash_registers_is_a_panic(reason: Ended) -> None:
    words = "Kernel panic - not syncing: No working init found."
    error = ending(reason, words)
    assert type(error) is errors.GuestPanic
    assert error.last_words == words


def test_a_panic_for_lack_of_memory() -> None:
    error = ending(Ended.GUEST_CRASH, "Kernel panic: System is deadlocked on memory")
    assert isinstance(error, errors.GuestOutOfMemory)
    assert "give it more" in str(error)


def test_a_state_that_is_refused_says_why() -> None:
    words = "[    1.0] teuthis\n[teuthis] the saved state belongs to another kind of processor"
    error = ending(Ended.STATE_REFUSED, words)
    assert isinstance(error, errors.SnapshotError)
    assert str(error).startswith("the saved state belongs to another kind of processor: make")


def test_an_orderly_end_is_no_panic() -> None:
    assert type(ending(Ended.POWER_OFF, "reboot: Power down")) is errors.GuestPowerOff
    assert type(ending(Ended.RESET, "reboot: Restarting")) is errors.GuestReset
