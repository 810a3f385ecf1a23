"""The `eigenmerge` command: one file per subcommand, nothing heavy imported before it is needed."""

from __future__ import annotations

import sys

import typer

from ...core.errors import EigenmergeError, one_line
from . import (
    cache_command,
    deploy_command,
    inspect_command,
    merge_command,
    methods_command,
    plan_command,
    verify_command,
)

app = typer.Typer(
    name="eigenmerge",
    help="Merge many fine-tuned experts of one base model into a single checkpoint by closed-form spectral filtering.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("merge")(merge_command.merge)
app.command("plan")(plan_command.plan)
app.command("inspect")(inspect_command.inspect)
app.command("methods")(methods_command.methods)
app.command("deploy")(deploy_command.deploy)
app.command("announce")(deploy_command.announce)
app.command("verify")(verify_command.verify)
app.add_typer(cache_command.cache, name="cache")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from importlib.metadata import version as installed_version

        print(f"eigenmerge {installed_version('eigenmerge')}")
        raise typer.Exit


def main() -> None:
    """Entry point: one line and a non-zero exit for what a user can cure, a traceback only for our own defects."""
    try:
        app()
    except EigenmergeError as error:
        print(f"eigenmerge: error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
