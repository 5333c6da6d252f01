"""Prepares the default kernel and initrd: `python -m teuthis.images [--update]`.

With `--update` the distribution is asked for a newer kernel than the cached one.
"""

import sys

from teuthis.errors import TeuthisError
from teuthis.images.boot import boot_files
from teuthis.images.kernel import default_kernel

if __name__ == "__main__":
    try:
        default_kernel(update="--update" in sys.argv[1:])
        boot_files()
    except TeuthisError as error:
        sys.exit(f"teuthis: {error}")
