"""The user's data directory: images, and the VMs that have names."""

import os
from pathlib import Path

import platformdirs


def directory(name: str = "") -> Path:
    """The data directory or its subdirectory `name`, made if missing; `TEUTHIS_DATA` moves it."""
    chosen = os.environ.get("TEUTHIS_DATA")
    top = Path(chosen).absolute() if chosen else platformdirs.user_data_path("teuthis")
    path = top / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
