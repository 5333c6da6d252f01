import errno
import pickle

import pytest

from teuthis import errors


def test_messages_say_what_happened_and_carry_the_last_words() -> None:
    panic = errors.GuestPanic("the guest's kernel crashed", "Kernel panic - not syncing: x")
    assert panic.last_words == "Kernel panic - not syncing: x"
    assert str(panic).splitlines() == ["the guest's kernel crashed", panic.last_words]
    assert str(errors.FileError("read", "/none", errno.ENOENT)) == (
        "the guest could not read '/none': No such file or directory"
    )


@pytest.mark.parametrize(
    "error",
    [
        errors.GuestPanic("crashed", "words"),
        errors.FileError("write", "/x", errno.EROFS),
        errors.ConfigurationError("no"),
        errors.CommandTimeout("too long", None),
    ],
)
def test_errors_cross_process_boundaries(error: errors.TeuthisError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
