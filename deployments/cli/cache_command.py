"""`eigenmerge cache`: what a store holds, how much of it, what may go, and whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ...core.errors import RecipeError
from .options import JsonOption, RecipeForStoreOption, StoreOption, open_store, parse_age, show_bytes

if TYPE_CHECKING:
    from ...core.cache.inventory import Grouping, Inventory, StoredRun

cache = typer.Typer(help="What a store holds: list, sizes, removal, checksums.", no_args_is_help=True)

_KEY_SIGNS = 12  # of a run's key in tables


@cache.command()
def ls(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    method: Annotated[str | None, typer.Option("--method", help="Only runs of this method.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Only runs with a model whose name holds this text.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a store: method, models, state, size."""
    from ...core.cache.inventory import NO_RUN, take_inventory, usage

    opened = open_store(store, recipe)
    inventory = take_inventory(opened)
    sizes = {row.name: row for row in usage(inventory, "run")}
    chosen = [
        run
        for run in inventory.runs
        if (method is None or run.method == method) and (model is None or any(model in name for name in run.models))
    ]
    rows = [_run_row(run, sizes) for run in sorted(chosen, key=lambda run: run.written)]
    free = sizes.get(NO_RUN)
    unused = {"num_objects": free.num_objects, "num_bytes": free.num_bytes} if free else None
    if as_json:
        print(json.dumps({"store": opened.display(""), "runs": rows, "no_run": unused}, indent=1))
        return
    columns = ("run", "state", "method", "experts", "started", "bytes", "own", "destination")
    _print_table(
        columns,
        [
            (
                row["run"][:_KEY_SIGNS],
                row["state"],
                row["method"],
                str(len(row["experts"])),
                (row["started"] or "?").replace("T", " ").removesuffix("+00:00"),
                show_bytes(row["num_bytes"]),
                show_bytes(row["own_bytes"]),
                row["destination"] or "?",
            )
            for row in rows
        ],
    )
    if unused:
        print(f"{unused['num_objects']} objects, {show_bytes(unused['num_bytes'])}, belong to no run")
    print(f"{_total(inventory)} in {opened.display('')}")


@cache.command()
def du(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    by: Annotated[str, typer.Option("--by", help="kind, run, method or model.")] = "kind",
    as_json: JsonOption = False,
) -> None:
    """Show what takes how much: OWN is what would be free if that alone were removed."""
    from ...core.cache.inventory import take_inventory, usage

    if by not in ("kind", "run", "method", "model"):
        raise RecipeError(f"--by {by!r} is unknown; choose kind, run, method or model")
    opened = open_store(store, recipe)
    inventory = take_inventory(opened)
    rows = usage(inventory, cast("Grouping", by))
    if as_json:
        total = {"num_objects": len(inventory.objects), "num_bytes": inventory.size(inventory.objects)}
        print(
            json.dumps(
                {"store": opened.display(""), "by": by, "rows": [asdict(row) for row in rows], **total}, indent=1
            )
        )
        return
    _print_table(
        (by, "objects", "bytes", "own"),
        [(row.name, str(row.num_objects), show_bytes(row.num_bytes), show_bytes(row.own_bytes)) for row in rows],
    )
    print(f"{_total(inventory)} in {opened.display('')}")


@cache.command()
def gc(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Remove runs, and objects of no run, of this age: 7d, 12h."),
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", metavar="KEY", help="Remove this run, and what only it uses.")
    ] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Remove kept sums over experts that a larger set contains.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old or named runs and what killed runs left. Keeps what a living run claims or another run uses."""
    from ...core.steps.collect_garbage import collect_garbage

    opened = open_store(store, recipe)
    found = collect_garbage(
        opened, older_than=parse_age(older_than), runs=run or (), superseded=superseded, dry_run=dry_run
    )
    if as_json:
        print(json.dumps({"store": opened.display(""), **asdict(found)}, indent=1))
        return
    would = "would remove" if found.dry_run else "removed"
    runs = ", ".join(key[:_KEY_SIGNS] for key in found.runs[:5]) + (", ..." if len(found.runs) > 5 else "")
    named = f" ({runs})" if runs else ""
    print(f"{would} {len(found.runs)} runs{named}, {found.num_objects} objects, {show_bytes(found.num_bytes)}")
    if found.num_abandoned:
        print(f"removed {found.num_abandoned} unfinished files or uploads of writers that are gone")
    for key in found.kept_running:
        print(f"kept run {key[:_KEY_SIGNS]}: somebody is at work on it")


@cache.command()
def verify(
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what is damaged; the next run that needs it makes it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything and check it against its checksums. Exit code 1 if something is damaged, and stays."""
    from ...core.steps.verify_store import verify_store

    opened = open_store(store, recipe)
    found = verify_store(opened, delete=delete)
    if as_json:
        print(json.dumps({"store": opened.display(""), **asdict(found), "deleted": delete}, indent=1))
    else:
        for damage in found.damaged:
            print(f"damaged{', removed' if delete else ''}: {damage.key}: {damage.reason}")
        for key in found.foreign:
            print(f"not ours: {key}")
        if found.uncommitted:
            print(f"{len(found.uncommitted)} parts of runs that were killed; they are written again when needed")
        print(f"{found.num_checked} objects, {show_bytes(found.num_bytes)}: {_verdict(len(found.damaged), delete)}")
    if found.damaged and not delete:
        raise typer.Exit(1)


def _verdict(num_damaged: int, delete: bool) -> str:
    if not num_damaged:
        return "all sound"
    return f"{num_damaged} damaged" + (" and removed" if delete else "; --delete removes them")


def _run_row(run: StoredRun, sizes: dict[str, Any]) -> dict[str, Any]:
    size = sizes.get(run.key)
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


def _total(inventory: Inventory) -> str:
    return f"{len(inventory.objects)} objects, {show_bytes(inventory.size(inventory.objects))}"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns that are cut nowhere: what is piped into another tool is whole."""
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
