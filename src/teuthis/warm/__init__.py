"""Interpreters that have started in a guest and wait there for programs: `VM(warm="python")`."""
