"""Attackers inside the real jails. See `prison.py` for how they get there."""
