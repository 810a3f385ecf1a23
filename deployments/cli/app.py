"""The `eigenmerge` command. Heavy packages are imported only when a subcommand of `commands` runs."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated, NoReturn

import typer
import typer.main
from typer.core import TyperGroup

from ...core.errors import EigenmergeError, one_line
from ..loopback import loopback_without_proxy
from .commands import (
    cache_command,
    compare_command,
    deploy_command,
    explain_command,
    extract_command,
    inspect_command,
    merge_command,
    methods_command,
    nightly_command,
    plan_command,
    push_command,
    report_command,
    sweep_command,
    verify_command,
)
from .mergekit_options import mergekit_hint
from .setup import doctor_command, init_command, schema_command
from .status import start_status, stop_status
from .terminal import show, show_error, show_help

app = typer.Typer(
    name="eigenmerge",
    help="Merge fine-tuned experts of one base model into a single checkpoint by closed-form spectral filtering.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("merge")(merge_command.merge)
app.command("sweep")(sweep_command.sweep)
app.command("nightly")(nightly_command.nightly)
app.command("plan")(plan_command.plan)
app.command("extract")(extract_command.extract)
app.command("inspect")(inspect_command.inspect)
app.command("report")(report_command.report)
app.command("explain")(explain_command.explain)
app.command("compare")(compare_command.compare)
app.command("methods")(methods_command.methods)
app.command("verify")(verify_command.verify)
app.command("push")(push_command.push)
app.add_typer(cache_command.cache, name="cache")
app.command("init")(init_command.init)
app.command("doctor")(doctor_command.doctor)
app.command("schema")(schema_command.schema)
app.command("deploy")(deploy_command.deploy)
app.command("announce")(deploy_command.announce)


@app.callback(invoke_without_command=True)
def _begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        _print_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        show_help(context)
        raise typer.Exit(2)


def main() -> None:
    """Run the command line. Errors that users can correct are printed on one line; others keep their traceback."""
    try:
        if _answer_without_parsing(sys.argv[1:]):
            return
        os.environ.update(loopback_without_proxy())
        if _shows_status(sys.argv[1:]):
            start_status(f"eigenmerge {sys.argv[1]}")
        code = app(standalone_mode=False, prog_name="eigenmerge")
    except EigenmergeError as error:
        _fail(one_line(error), error.exit_code)
    except typer.TyperException as error:  # a wrong option, argument or subcommand
        context: typer.Context | None = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "eigenmerge"
        # typer converts values by pydantic, which adds this prefix to errors of typer's own validators
        message = " ".join(error.format_message().split()).replace("Value error, ", "").removesuffix(".")
        instead = mergekit_hint(message, sys.argv[1:])
        _fail(instead or f"{message}; see `{command} --help`", error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    finally:
        stop_status()
        gc.freeze()  # at its end, Python looks several times at all objects: half a second with torch and Prefect
    sys.exit(code if isinstance(code, int) else 0)


def _answer_without_parsing(arguments: list[str]) -> bool:
    """Answer `--version` and `[COMMAND]... --help`, and return whether the arguments were one of these.

    typer would answer them too, but it imports pydantic as soon as it parses an option.
    """
    if arguments == ["--version"]:
        _print_version()
        return True
    if arguments[-1:] not in (["--help"], ["-h"]):
        return False
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="eigenmerge", **command.context_settings)
    for name in arguments[:-1]:
        found = command.get_command(context, name) if isinstance(command, TyperGroup) else None
        if found is None:
            return False
        command, context = found, typer.Context(found, info_name=name, parent=context)
    show_help(context)
    return True


def _shows_status(arguments: list[str]) -> bool:
    """Return whether a command begins that has not been told to be quiet. Completion of a shell has no arguments."""
    quiet = {"--json", "--quiet", "-q", "--help", "-h"}
    return bool(arguments) and not arguments[0].startswith("-") and quiet.isdisjoint(arguments)


def _print_version() -> None:
    from importlib.metadata import version

    show(f"eigenmerge {version('eigenmerge')}")


def _fail(message: str, exit_code: int) -> NoReturn:
    show_error(f"error: {message}")
    sys.exit(exit_code)
