"""`eigenmerge init`: look at models and write a recipe for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ....core.errors import RecipeError
from ..options import check_places, show_bytes, show_count
from ..terminal import show

_TO_STANDARD_OUTPUT = "-"


def init(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...", help="Fine-tunes or adapters: paths, URIs or Hub names.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What the models were fine-tuned from.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="NAME", help="Merge method. Default: swudi_a.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write the recipe; - prints it.")
    ] = "recipe.yml",
) -> None:
    """Write a commented recipe that merges MODEL... and check that it can be merged. Asks for what is not given."""
    from ....core.coordination.machine_memory import machine_memory
    from ....core.steps.propose_recipe import DEFAULT_METHOD, propose_recipe

    path = Path(output)
    if output != _TO_STANDARD_OUTPUT and path.exists():
        raise RecipeError(f"{output}: exists already; name another file with --output, or remove it")
    if not models and sys.stdin.isatty():
        models = _ask_for_models()
        base = base or _ask_for("base model (what they were fine-tuned from; empty: as adapters name it)") or None
        method = method or _ask_for("merge method", DEFAULT_METHOD)
    if not models:
        raise RecipeError("MODEL is missing; give the models to merge, at least two")
    check_places(None, base=base, **{f"model {number}": model for number, model in enumerate(models, 1)})
    proposal = propose_recipe(models, base=base, method=method, memory=machine_memory().available)
    if output == _TO_STANDARD_OUTPUT:
        show(*proposal.text.splitlines())
        return
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(proposal.text)
    except OSError as error:
        raise RecipeError(f"{output}: cannot be written: {error.strerror}") from None
    plan = proposal.plan
    show(
        f"{output}: {show_count(len(plan.experts), 'expert')} by {plan.recipe['merge_method']};"
        f" reads {show_bytes(plan.bytes_read)}, writes {show_bytes(plan.bytes_written)},"
        f" at most {show_bytes(plan.peak_bytes)} of memory per worker",
        *(f"warning: {warning}" for warning in plan.warnings),
        f"next: eigenmerge plan {output}; eigenmerge merge {output} merged",
    )


def _ask_for_models() -> list[str]:
    show("models to merge: paths, URIs or Hub names, one on each line; an empty line ends the list")
    found: list[str] = []
    while answer := _ask_for(f"model {len(found) + 1}"):
        found.append(answer)
    return found


def _ask_for(what: str, default: str = "") -> str:
    return str(typer.prompt(what, default=default, show_default=bool(default))).strip()
