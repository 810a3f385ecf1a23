"""`eigenmerge plan`: print what a merge will read, compute, write and keep, from headers alone."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .options import JsonOption, MaxMemoryOption, RecipeArgument, parse_size, show_bytes
from .simulate_option import (
    DEFAULT_MACHINE,
    MachineOption,
    SimulateOption,
    find_machine,
    run_simulations,
    simulation_lines,
    simulation_rows,
)

_MOST_SHARDS_SHOWN = 40


def plan(
    recipe: RecipeArgument,
    max_memory: MaxMemoryOption = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Print one line per output tensor as well.")] = False,
    simulate: SimulateOption = None,
    machine: MachineOption = DEFAULT_MACHINE,
    as_json: JsonOption = False,
) -> None:
    """Show what a merge of RECIPE reads, computes and writes. Reads headers only, no weights."""
    from ...core.planning.summary import summarize_plan, tensor_rows
    from ...core.steps.make_plan import make_plan
    from ...core.steps.read_recipe import read_recipe

    budget = parse_size(max_memory)
    made = make_plan(read_recipe(recipe), max_memory=budget)
    summary = summarize_plan(made)
    rows = tensor_rows(made) if tensors else []
    simulations = run_simulations(made, simulate, machine) if simulate else []
    if as_json:
        summary |= {"tensors": rows} if tensors else {}
        summary |= {"simulations": simulation_rows(simulations)} if simulations else {}
        print(json.dumps(summary, indent=1))
        return
    for line in _totals(summary):
        print(line)
    if simulations:
        print("\n".join(simulation_lines(simulations, find_machine(machine).source)))
    else:
        _print_shards(summary["shards"])
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        print(f"{row['name']}  {shape} {row['dtype']}  {row['method'] or row['action']}: {row['reason']}")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")


def _totals(summary: dict[str, Any]) -> list[str]:
    largest = summary["largest_tensor"]
    base = f" on {summary['base']['name']}" if summary["base"] else ""
    lines = [
        f"{summary['method']}: {summary['num_experts']} experts{base}; {summary['num_tensors']} tensors in"
        f" {summary['num_shards']} shards, {_count(len(summary['files']), 'file')}",
        f"  read     {show_bytes(summary['bytes_read'])}",
        f"  compute  {summary['flops']:.3g} floating point operations",
        f"  write    {show_bytes(summary['bytes_written'])}: {', '.join(f['name'] for f in summary['files'][:3])}"
        + (", ..." if len(summary["files"]) > 3 else ""),
        f"  keep     {show_bytes(summary['spectrum_bytes'])} of spectra in the store"
        + (f", {show_bytes(summary['sums_bytes'])} of sums over experts" if summary["sums_bytes"] else ""),
        f"  memory   {show_bytes(summary['peak_bytes'])} per worker at most"
        + (f", for {largest['name']} {'x'.join(map(str, largest['shape']))}" if largest else ""),
    ]
    for row in summary["treatments"]:
        lines.append(f"  {row['num_tensors']:>6} tensors: {row['method'] or row['action']} ({row['reason']})")
    return lines


def _print_shards(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("shard", "tensors", "read", "flops", "peak memory", "writes", "spectra", "first tensor", box=None)
    for column in table.columns:
        column.no_wrap = True
    for row in rows[:_MOST_SHARDS_SHOWN]:
        table.add_row(
            str(row["index"]),
            str(row["num_tensors"]),
            show_bytes(row["bytes_read"]),
            f"{row['flops']:.2g}",
            show_bytes(row["peak_bytes"]),
            show_bytes(row["bytes_written"]),
            show_bytes(row["spectrum_bytes"]),
            row["name"].split(" .. ")[0],
        )
    Console().print(table)
    if len(rows) > _MOST_SHARDS_SHOWN:
        print(f"... and {len(rows) - _MOST_SHARDS_SHOWN} more shards; --json lists all")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
