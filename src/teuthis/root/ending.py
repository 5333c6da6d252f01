"""Why a VM ended, as the error that its user sees: what happened, and what to do."""

from typing import Final

from teuthis import errors
from teuthis.protocol import Ended

_REPORT: Final = "this VM alone was ended; please report it with the kernel's version"
_OUT_OF_MEMORY: Final = (
    "Out of memory",
    "System is deadlocked on memory",
    "Initramfs unpacking failed",
)

_MESSAGES: Final[dict[Ended, tuple[type[errors.TeuthisError], str]]] = {
    Ended.POWER_OFF: (
        errors.GuestPowerOff,
        "the guest switched itself off: start a new VM to go on",
    ),
    Ended.RESET: (
        errors.GuestReset,
        "the guest restarted itself, and a VM runs one boot only: start a new VM to go on",
    ),
    Ended.TRIPLE_FAULT: (
        errors.GuestHalted,
        "the guest's processor stopped in a triple fault: its kernel is damaged or was not made "
        "for this machine; try the default kernel",
    ),
    Ended.GUEST_CRASH: (
        errors.GuestPanic,
        "the guest's kernel crashed; `console` (--console) shows all it wrote",
    ),
    Ended.HALTED: (
        errors.GuestHalted,
        "the guest's processor halted for ever: its kernel gave up; "
        "`console` (--console) shows all it wrote",
    ),
    Ended.WORKER_VIOLATION: (
        errors.ProtocolViolation,
        f"the worker process broke the rules of its links to the others: {_REPORT}",
    ),
    Ended.STOPPED: (errors.VMClosed, "the VM was stopped"),
    Ended.STATE_REFUSED: (
        errors.SnapshotError,
        "the saved machine is damaged, or was saved by another version: make the snapshot anew",
    ),
    Ended.AGENT_VIOLATION: (
        errors.ProtocolViolation,
        "the guest's agent sent something that is not its protocol, so the guest was ended: "
        "a program in it may have replaced the agent",
    ),
    Ended.MESSAGES_NOT_TAKEN: (
        errors.ProtocolViolation,
        "the guest's kernel stopped taking the messages it asked for, so the guest was ended",
    ),
    Ended.LINK_VIOLATION: (
        errors.ProtocolViolation,
        f"the hypervisor process broke the rules of its link to the worker: {_REPORT}",
    ),
    Ended.HYPERVISOR_DIED: (
        errors.ProtocolViolation,
        f"the hypervisor process died, or was killed ({{}}): {_REPORT}",
    ),
    Ended.VMBUS_LIMIT: (
        errors.ProtocolViolation,
        "the guest asked for more VMBus channels or memory lists than a guest may, so it was ended",
    ),
    Ended.LAYER_DAMAGED: (
        errors.VMError,
        "a copy-on-write layer that was kept is damaged: start without it, or with a copy of it",
    ),
    Ended.INTERNAL_ERROR: (
        errors.ProtocolViolation,
        f"the worker process met a defect of its own: {_REPORT}",
    ),
    Ended.HUNG: (
        errors.GuestHung,
        "the guest's kernel did not answer heartbeats any more, so the guest was ended, as "
        "on_hang='kill' (--on-hang kill) asks for; on_hang='report' leaves it alone",
    ),
}


_NOTE = "[teuthis] "


def ending(
    reason: Ended | None, last_words: str, *, worker: str = "", hypervisor: str = ""
) -> errors.TeuthisError:
    """The error for a VM that ended.

    Args:
        reason: what the worker gave as a reason; None when it died before it could give one.
        last_words: the end of the console, harmless.
        worker: how the worker process ended.
        hypervisor: how the hypervisor process ended.
    """
    if reason is None:
        return errors.ProtocolViolation(
            f"the worker process died, or was killed ({worker}): {_REPORT}", last_words
        )
    kind, message = _MESSAGES[reason]
    if reason is Ended.HYPERVISOR_DIED:
        message = message.format(hypervisor)
    if reason is Ended.STATE_REFUSED and (said := _notes(last_words)):
        message = f"{said[-1]}: make the snapshot anew"
    # Before the guest has its crash registers, a panic looks like a restart or a halt.
    if kind in (errors.GuestReset, errors.GuestHalted) and "Kernel panic" in last_words:
        kind, message = _MESSAGES[Ended.GUEST_CRASH]
    if kind is errors.GuestPanic and any(text in last_words for text in _OUT_OF_MEMORY):
        kind = errors.GuestOutOfMemory
        message = "the guest's memory ran out and its kernel gave up: give it more, say memory=1G"
    if issubclass(kind, errors.GuestPanic):
        return kind(message, last_words)
    return kind(message)


def _notes(last_words: str) -> list[str]:
    """What our own processes said on the console."""
    lines = last_words.splitlines()
    return [line.removeprefix(_NOTE) for line in lines if line.startswith(_NOTE)]
