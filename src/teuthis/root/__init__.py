"""The root side: makes, watches and ends virtual machines; never parses guest data."""
