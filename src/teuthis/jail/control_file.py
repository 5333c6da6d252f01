"""Files by which the kernel takes settings: those of `/proc` and of control groups."""

import os


def write(file: str | os.PathLike[str], text: str) -> None:
    """Writes `text` in one piece; a file that is not there is never made. Raises `OSError`."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
