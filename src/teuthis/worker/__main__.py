"""`python -I -m teuthis.worker --requests-fd N`: the zygote, which becomes workers."""

import os
import sys

from teuthis.worker.zygote import main

if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # nothing of it has to be taken down piece by piece
