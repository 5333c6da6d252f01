"""Prepares the default kernel and initrd: `python -m teuthis.images`."""

import sys

from teuthis.errors import TeuthisError
from teuthis.images import boot_files

if __name__ == "__main__":
    try:
        boot_files()
    except TeuthisError as error:
        sys.exit(f"teuthis: {error}")
