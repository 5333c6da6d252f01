"""`python -m teuthis.switch --config-fd N`."""

import sys

from teuthis.errors import MissingWall
from teuthis.jail import walls
from teuthis.switch.main import main

try:
    sys.exit(main(sys.argv[1:]))
except MissingWall as missing:
    sys.exit(walls.exit_status(missing.name))
