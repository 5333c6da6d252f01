"""The command line: one file per verb."""

import typer

from teuthis.cli import (
    attach,
    console,
    cp,
    doctor,
    exec,
    flows,
    image,
    inspect,
    logs,
    ls,
    rm,
    run,
    shell,
    squid,
    start,
    stop,
    surface,
    version,
)

_HELP = """Runs programs in virtual machines whose every way out is listed, counted and tested.

```
teuthis run -- uname -a
teuthis run --timeout 30s -- sh -c 'echo hello from inside'
teuthis run -- sha256sum < some-file
teuthis shell
teuthis flows
```
"""

app = typer.Typer(
    help=_HELP,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# What follows the program's name is the program's, options too.
_RUN_SETTINGS = {"allow_interspersed_args": False}
app.command("run", cls=attach.Command, context_settings=_RUN_SETTINGS)(run.main)
app.command("start", cls=attach.Command, context_settings=_RUN_SETTINGS)(start.main)
app.command("exec", cls=attach.Command, context_settings=_RUN_SETTINGS)(exec.main)
app.command("cp")(cp.main)
app.command("shell")(shell.main)
app.command("ls")(ls.main)
app.command("inspect")(inspect.main)
app.command("logs")(logs.main)
app.command("console")(console.main)
app.command("stop")(stop.main)
app.command("rm")(rm.main)
app.command("flows")(flows.main)
app.command("squid")(squid.main)
app.command("doctor")(doctor.main)
app.command("surface")(surface.main)
app.add_typer(image.app, name="image")
app.command("version")(version.main)


def main() -> None:
    """Entry point of the program `teuthis`."""
    app()
