"""`python -m teuthis.switch --config-fd N`."""

import sys

from teuthis.switch.main import main

sys.exit(main(sys.argv[1:]))
