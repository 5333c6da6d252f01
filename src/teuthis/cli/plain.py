"""`teuthis run` with everyday options, read without typer.

Typer takes longer to be imported than a VM to start from its template. What is not listed here, or
looks wrong, is left to it, and `cli/run.py` remains the place that says which options there are.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_VALUES: Final = {
    "--memory": "memory",
    "--image": "image",
    "--timeout": "timeout",
    "--workdir": "workdir",
    "--user": "user",
    "--warm": "warm",
}
_FLAGS: Final = {"--cold": "cold"}


def parse(words: list[str]) -> dict[str, Any] | None:
    """Arguments of `run.main` that these words of a command line say; None: ask typer."""
    if not words or words[0] != "run":
        return None
    said: dict[str, Any] = {}
    env: list[str] = []
    rest = iter(words[1:])
    for word in rest:
        if word in _FLAGS:
            said[_FLAGS[word]] = True
        elif word in _VALUES or word == "--env":
            value = next(rest, "-")
            if not value or value.startswith("-"):
                return None
            if word == "--env":
                env.append(value)
            else:
                said[_VALUES[word]] = value
        else:
            command = [*([] if word == "--" else [word]), *rest]
            if (word != "--" and word.startswith("-")) or not command:
                return None
            return said | {"command": command, "env": env or None}
    return None
