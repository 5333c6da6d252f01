"""The one way a VM ends inside the worker: an `EndVM` travels up to `main`, which reports it."""

from teuthis.protocol import Ended


class EndVM(Exception):
    """Ends this VM with `reason`; `note` is a line of our own words for the console."""

    def __init__(self, reason: Ended, note: str = "") -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.note = note
