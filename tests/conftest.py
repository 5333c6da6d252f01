"""What all tests share."""

import signal

from hypothesis import settings

pytest_plugins = ["tests.register.recorder"]

# How long an example takes says nothing on a busy host; pytest-timeout ends what hangs.
settings.register_profile("teuthis", deadline=None)
settings.load_profile("teuthis")


def pytest_configure() -> None:
    """Heeds signals that whoever runs the tests ignores, as a shell's background jobs do.

    Programs that the tests start inherit it, and some tests send them signals.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
