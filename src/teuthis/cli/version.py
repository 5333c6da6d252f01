"""`teuthis version`."""

from importlib import metadata


def main() -> None:
    """Show the version of this program."""
    print(f"teuthis {metadata.version('teuthis')}")
