"""`python -I -m teuthis.worker --requests-fd N`: the zygote, which becomes workers."""

import sys

from teuthis.worker.zygote import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
