"""A Debian machine at work, for minutes: `make test-debian`."""
