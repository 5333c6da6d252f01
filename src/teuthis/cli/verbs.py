"""The verbs, put together: one file each, and only those that are asked for are loaded."""

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand

from teuthis.cli import options
from teuthis.cli.attach import OWN_ERROR

_HELP: Final = """\
Runs programs in virtual machines whose every way out is listed, counted and tested.

```
teuthis run -- uname -a
teuthis run --timeout 30s -- sh -c 'echo hello from inside'
teuthis run -- sha256sum < some-file
teuthis shell
teuthis flows
```
"""


class _Command(TyperCommand):
    """A verb; wrong options end it with the exit code of our own errors, not a program's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "exit_code", 0) == 2:
                error.exit_code = OWN_ERROR  # type: ignore[attr-defined]
            raise


_PROGRAMS: Final = ("run", "start", "exec")
"""What follows the program's name is the program's, options too."""
_VERBS: Final = (
    *_PROGRAMS,
    *("cp", "shell", "ls", "inspect", "logs", "console", "stop", "rm", "replay"),
    *("pause", "resume", "snapshot", "fork"),
    *("flows", "squid", "doctor", "surface", "image", "version"),
)


def app(verb: str = "") -> typer.Typer:
    """The program with its verb `verb` only, or with all, if there is none of that name."""
    program = typer.Typer(
        help=_HELP,
        rich_markup_mode="markdown",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_nothing)
    for name in [verb] if verb in _VERBS else _VERBS:
        module = import_module(f"teuthis.cli.{name}")
        if hasattr(module, "app"):
            program.add_typer(module.app, name=name)
        elif name in _PROGRAMS:
            vars(module).update(typer=typer, options=options)  # for the annotations of `run`
            settings = {"allow_interspersed_args": False}
            program.command(name, cls=_Command, context_settings=settings)(module.main)
        else:
            program.command(name)(module.main)
    return program


def _nothing() -> None:
    """Keeps a program with a single verb from taking that for itself."""
