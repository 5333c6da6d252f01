"""`python -I -m teuthis.worker --config-fd N`."""

import sys

from teuthis.worker.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
