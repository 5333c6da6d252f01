"""The one barrier that memory shared with other processes needs."""

import _thread

_lock = _thread.allocate_lock()


def full_barrier() -> None:
    """Orders our earlier stores before our later loads of memory that we share.

    x86 reorders only that pair. Taking a lock compiles to a locked instruction, which is a full
    barrier by the architecture; nobody ever contends for this one.
    """
    _lock.acquire(False)
    _lock.release()
