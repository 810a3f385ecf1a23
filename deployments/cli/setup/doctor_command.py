"""`eigenmerge doctor`: check what a merge needs on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import JsonOption, RecipeForStoreOption, StoreOption
from ..terminal import show, show_json, wrapped

if TYPE_CHECKING:
    from ...machine_checks import Check


def doctor(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    server: Annotated[
        bool, typer.Option("--server/--no-server", help="Start an embedded Prefect server as a run does, and end it.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check processor, memory, GPU, disks, store and Prefect. Exit code 1 if a merge would fail."""
    from ....core.steps.read_recipe import read_recipe
    from ...machine_checks import check_machine

    read = read_recipe(recipe) if recipe is not None else None
    place, options = (read.store, read.storage_options) if read is not None else (None, None)
    found: list[Check] = []
    for check in check_machine(store or place, options, start_server=server):
        found.append(check)
        if not as_json:
            show(*wrapped(f"{check.state:<8}{check.subject:<11}", check.text))
    if as_json:
        show_json([asdict(check) for check in found])
    problems = sum(check.state == "problem" for check in found)
    if not as_json:
        show(f"{problems} problem{'s' if problems > 1 else ''} found" if problems else "a merge can run here")
    if problems:
        raise typer.Exit(1)
