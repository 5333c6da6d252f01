"""An error on its way from one process to another, or to the list of VMs."""

import msgspec

from teuthis import errors
from teuthis.errors import TeuthisError


class Failure(msgspec.Struct, frozen=True):
    """An error of this package.

    Attributes:
        kind: its name in `teuthis.errors`.
        text: what it says; harmless for terminals.
        last_words: the end of a crashed guest's console, in `text` too.
    """

    kind: str
    text: str
    last_words: str = ""

    @classmethod
    def of(cls, error: TeuthisError) -> "Failure":
        """From an error."""
        return cls(type(error).__name__, str(error), getattr(error, "last_words", ""))

    @property
    def message(self) -> str:
        """What happened, in one line."""
        return self.text.partition("\n")[0]

    def error(self, before: str = "") -> TeuthisError:
        """The error again, its text after `before`; one of a kind that is not known here is plain.

        Its constructor is passed over: each kind has its own, and the text is finished.
        """
        kind = getattr(errors, self.kind, TeuthisError)
        if not (isinstance(kind, type) and issubclass(kind, TeuthisError)):
            kind = TeuthisError
        error = kind.__new__(kind)
        error.args = (before + self.text,)
        if isinstance(error, errors.GuestPanic):
            error.last_words = self.last_words
        return error
