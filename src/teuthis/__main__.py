"""`python -m teuthis` is the program `teuthis`."""

from teuthis.cli import main

main()
