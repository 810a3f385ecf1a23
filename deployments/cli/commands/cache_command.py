"""`eigenmerge cache`: list the runs of a store, sum its sizes, remove what is not needed, verify checksums."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....core.choices import Grouping
from ..options import (
    JsonOption,
    RecipeForStoreOption,
    StoreOption,
    open_existing_store,
    parse_age,
    show_bytes,
    show_count,
)
from ..table import table_lines, terminal_width, wrapped_lines
from ..terminal import show, show_help, show_json

if TYPE_CHECKING:
    from ....core.cache.inventory import Inventory, StoredRun, Usage

cache = typer.Typer(help="List, measure, clean and verify a store.")

_KEY_CHARACTERS = 12  # of a run key in tables
_MOST_EXPERTS_SHOWN = 5
_MOST_CHARACTERS_OF_A_VALUE = 60


@cache.callback(invoke_without_command=True)
def _begin(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show_help(context)
        raise typer.Exit(2)


@cache.command()
def ls(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    method: Annotated[str | None, typer.Option("--method", metavar="METHOD", help="Only runs of this method.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="TEXT", help="Only runs with a model whose name contains this text."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a store: state, method, sizes, models, destination, and what differs between runs of a sweep.

    SIZE is what a run uses, OWN what no other run uses: what its removal frees.
    """
    from ....core.cache.inventory import NO_RUN, take_inventory, usage

    opened = open_existing_store(store, recipe)
    inventory = take_inventory(opened)
    sizes = {row.name: row for row in usage(inventory, "run")}
    chosen = [
        run
        for run in inventory.runs
        if (method is None or run.method == method) and (model is None or any(model in name for name in run.models))
    ]
    rows = _run_rows(sorted(chosen, key=lambda run: run.written), sizes)
    unused = sizes.get(NO_RUN)
    no_run = {"num_objects": unused.num_objects, "num_bytes": unused.num_bytes} if unused else None
    if as_json:
        show_json({"store": opened.display(""), "runs": rows, "no_run": no_run})
        return
    show(*_run_lines(rows, terminal_width()))
    if unused:
        show(f"used by no run: {show_count(unused.num_objects, 'object')}, {show_bytes(unused.num_bytes)}")
    show(f"{opened.display('')}: {_total(inventory)}")


@cache.command()
def du(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    by: Annotated[Grouping, typer.Option("--by", help="How to group the objects.")] = "kind",
    as_json: JsonOption = False,
) -> None:
    """Show sizes by kind, run, method or model. OWN is the size of what no other row uses: what its removal frees."""
    from ....core.cache.inventory import take_inventory, usage

    opened = open_existing_store(store, recipe)
    inventory = take_inventory(opened)
    rows = usage(inventory, by)
    if as_json:
        total = {"num_objects": len(inventory.objects), "num_bytes": inventory.size(inventory.objects)}
        show_json({"store": opened.display(""), "by": by, "rows": [asdict(row) for row in rows], **total})
        return
    _print_table(
        (by, "objects", "bytes", "own"),
        [(row.name, str(row.num_objects), show_bytes(row.num_bytes), show_bytes(row.own_bytes)) for row in rows],
    )
    show(f"{opened.display('')}: {_total(inventory)}")


@cache.command()
def gc(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="AGE", help="Remove runs, and objects that no run uses, if they are older: 12h, 7d."
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="KEY", help="Remove this run and what only it uses. Repeatable."),
    ] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Remove kept sums over experts if sums over a larger set exist.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old or named runs and the remains of killed runs. Keeps what an active run or another run uses."""
    from ....core.steps.collect_garbage import collect_garbage

    age = parse_age(older_than)
    opened = open_existing_store(store, recipe)
    found = collect_garbage(opened, older_than=age, runs=run or (), superseded=superseded, dry_run=dry_run)
    if as_json:
        show_json({"store": opened.display(""), **asdict(found)})
        return
    would = "would remove" if found.dry_run else "removed"
    runs = ", ".join(key[:_KEY_CHARACTERS] for key in found.runs[:5]) + (", ..." if len(found.runs) > 5 else "")
    named = f" ({runs})" if runs else ""
    removed = f"{show_count(len(found.runs), 'run')}{named}, {show_count(found.num_objects, 'object')}"
    show(f"{would} {removed}, {show_bytes(found.num_bytes)}")
    if found.num_abandoned:
        show(f"removed {show_count(found.num_abandoned, 'unfinished file')} or uploads of killed processes")
    for key in found.kept_foreign:
        show(f"kept {key}: not written by Eigenmerge, or damaged; `eigenmerge cache verify` reads it")
    for key in found.kept_running:
        show(f"kept run {key[:_KEY_CHARACTERS]}: it is active")


@cache.command()
def verify(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove damaged objects; a run that needs them computes them again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every object and check it against its checksums. Exit code 1: a damaged object was found and not removed."""
    from ....core.steps.verification.verify_store import verify_store

    opened = open_existing_store(store, recipe)
    found = verify_store(opened, delete=delete)
    if as_json:
        show_json({"store": opened.display(""), **asdict(found), "deleted": delete})
    else:
        for damage in found.damaged:
            outcome = ", removed" if damage.key in found.removed else ", kept" if delete else ""
            show(f"damaged{outcome}: {damage.key}: {damage.reason}")
        for key in found.foreign:
            show(f"not checked: {key}: not written by this version of Eigenmerge")
        if found.uncommitted:
            show(f"not checked: {show_count(len(found.uncommitted), 'incomplete part')}, left by killed runs")
        checked = f"{show_count(found.num_checked, 'object')}, {show_bytes(found.num_bytes)}"
        show(f"checked {checked}: {_verdict(len(found.damaged), len(found.removed), delete)}")
    if len(found.damaged) > len(found.removed):
        raise typer.Exit(1)


def _verdict(num_damaged: int, num_removed: int, delete: bool) -> str:
    if not num_damaged:
        return "no damage"
    if not delete:
        return f"{num_damaged} damaged; --delete removes them"
    kept = num_damaged - num_removed
    if kept:
        return f"{num_damaged} damaged, {num_removed} removed; {kept} kept, which no run is known to have written"
    return f"{num_damaged} damaged and removed"


def _run_rows(runs: Sequence[StoredRun], sizes: dict[str, Usage]) -> list[dict[str, Any]]:
    """Return what `--json` prints of each run; "differs" are the keys in which runs of the same models differ."""
    from ....core.recipe.differences import differing_keys

    groups: dict[tuple[str, ...], list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.models), []).append(run)
    differs: dict[str, dict[str, object]] = {}
    for group in groups.values():
        keys = differing_keys([run.facts.get("recipe") or {} for run in group])
        for index, run in enumerate(group):
            differs[run.key] = {path: values[index] for path, values in keys.items()}
    return [_run_row(run, sizes.get(run.key)) | {"differs": differs[run.key]} for run in runs]


def _run_row(run: StoredRun, size: Usage | None) -> dict[str, Any]:
    return {
        "run": run.key,
        "state": run.state,
        "method": run.method,
        "base": run.facts.get("base"),
        "experts": list(run.facts.get("experts", [])),
        "started": run.facts.get("started"),
        "finished": run.facts.get("finished"),
        "destination": run.facts.get("destination"),
        "num_objects": size.num_objects if size else 0,
        "num_bytes": size.num_bytes if size else 0,
        "own_bytes": size.own_bytes if size else 0,
    }


def _run_lines(rows: Sequence[dict[str, Any]], width: int | None) -> list[str]:
    """Return a table in 80 columns, with what does not fit below each row: where to, of which models, what differs."""
    table = table_lines(
        ("run", "state", "method", "started", "size", "own"),
        [
            (
                row["run"][:_KEY_CHARACTERS],
                row["state"],
                row["method"],
                (row["started"] or "?").replace("T", " ").removesuffix("+00:00"),
                show_bytes(row["num_bytes"]),
                show_bytes(row["own_bytes"]),
            )
            for row in rows
        ],
    )
    lines = table[:1]
    for line, row in zip(table[1:], rows, strict=True):
        lines.append(line)
        lines += wrapped_lines((f"    {text}" for text in _run_details(row)), width, indent=9)
    return lines


def _run_details(row: dict[str, Any]) -> list[str]:
    experts = [_last_name(name) for name in row["experts"]]
    more = f", ... ({len(experts)} experts)" if len(experts) > _MOST_EXPERTS_SHOWN else ""
    models = ", ".join(experts[:_MOST_EXPERTS_SHOWN]) + more
    if row["base"]:
        models += f" on {_last_name(row['base'])}"
    # The method has a column of its own.
    differs = [f"{path} {_value(value)}" for path, value in row["differs"].items() if path != "merge_method"]
    found = {"to": row["destination"], "of": models, "with": "; ".join(differs)}
    return [f"{label:<4} {text}" for label, text in found.items() if text]


def _last_name(reference: str) -> str:
    """Return the end of a model's reference that tells it from its neighbours: "math" of /models/math."""
    return "+".join(part.rstrip("/").rpartition("/")[2] or part for part in reference.split("+"))


def _value(value: object) -> str:
    text = "(default)" if value is None else json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS_OF_A_VALUE else text[: _MOST_CHARACTERS_OF_A_VALUE - 3] + "..."


def _total(inventory: Inventory) -> str:
    return f"{show_count(len(inventory.objects), 'object')}, {show_bytes(inventory.size(inventory.objects))}"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    show(*table_lines(columns, rows))
