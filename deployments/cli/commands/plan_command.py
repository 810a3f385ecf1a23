"""`eigenmerge plan`: print what a merge will read, compute, write and keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....core.errors import RecipeError
from ..options import AllowMixedOption, JsonOption, MaxMemoryOption, parse_size, show_bytes, show_count
from ..shape_option import ExpertsOption, MethodOption, RankOption, ShapeOption, shaped_stages
from ..simulate_option import (
    DEFAULT_MACHINE,
    MachineOption,
    SimulateOption,
    find_machine,
    run_simulations,
    simulation_lines,
    simulation_rows,
)
from ..status import set_status
from ..table import table_lines, terminal_width, wrapped_lines
from ..terminal import show, show_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ....core.listing import ModelListing
    from ....core.planning.plan import Plan

_MOST_KINDS_SHOWN = 40
_MOST_EXPERTS_SHOWN = 20


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Path or URI of a recipe in YAML, or its text.", show_default=False),
    ] = None,
    max_memory: MaxMemoryOption = None,
    allow_mixed: AllowMixedOption = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="Print one line per output tensor as well.")] = False,
    simulate: SimulateOption = None,
    machine: MachineOption = DEFAULT_MACHINE,
    shape: ShapeOption = None,
    experts: ExpertsOption = None,
    method: MethodOption = None,
    rank: RankOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a merge of RECIPE reads, computes and writes.

    Reads headers, and what identifies the models: those of at most 1 GiB, samples of larger ones. With --shape, nothing
    is read, and RECIPE may be left out: eigenmerge plan --shape llama-70b --experts 8 --method swudi_a
    """
    set_status("reading the recipe and the headers of the models")
    from ....core.recipe.stages import allow_mixed_architectures
    from ....core.steps.plan_stages import plan_stages
    from ....core.steps.read_recipe import read_stages

    budget = parse_size(max_memory)
    models: Mapping[str, ModelListing] = {}
    if shape is not None:
        stages, models = shaped_stages(recipe, shape, experts, method, rank)
    else:
        given = {"--experts": experts, "--method": method, "--rank": rank}
        unused = next((option for option, value in given.items() if value is not None), None)
        if unused is not None:
            raise RecipeError(f"{unused} is for --shape; add --shape NAME, or remove it")
        if recipe is None:
            raise RecipeError("RECIPE is missing; give one, or --shape NAME to plan a merge of models of a known shape")
        stages = read_stages(recipe, "OUT")
    stages = allow_mixed_architectures(stages) if allow_mixed else stages
    planned = plan_stages(stages, max_memory=budget, models=models)
    if as_json:
        shown = [_data(made, tensors, simulate, machine) for _, made in planned]
        show_json(shown[0] if len(stages) == 1 else shown)
        return
    for number, (stage, made) in enumerate(planned):
        if len(stages) > 1:
            show(*([""] if number else []), f"{stage.label} -> {stage.destination}")
        _print_plan(made, tensors, simulate, machine)


def _data(made: Plan, tensors: bool, simulate: str | None, machine: str) -> dict[str, Any]:
    from ....core.planning.summary import summarize_plan, tensor_rows

    simulations = run_simulations(made, simulate, machine) if simulate else []
    extra = {"tensors": tensor_rows(made)} if tensors else {}
    return summarize_plan(made) | extra | ({"simulations": simulation_rows(simulations)} if simulations else {})


def _print_plan(made: Plan, tensors: bool, simulate: str | None, machine: str) -> None:
    from ....core.planning.summary import summarize_plan, tensor_rows

    summary = summarize_plan(made)
    rows = tensor_rows(made) if tensors else []
    simulations = run_simulations(made, simulate, machine) if simulate else []
    width = terminal_width()
    show(*wrapped_lines(_summary_lines(summary), width))
    if simulations:
        show(*simulation_lines(simulations, find_machine(machine).source))
    else:
        show(*_kind_lines(summary["kinds"], width))
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        show(f"{row['name']}  {shape} {row['dtype']}  {row['method'] or row['action']}: {row['reason']}")
    for warning in summary["warnings"]:
        show(*wrapped_lines([f"warning: {warning}"], width))


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    largest = summary["largest_tensor"]
    base = f" on {summary['base']['name']}" if summary["base"] else ""
    lines = [
        f"{summary['method']}: {show_count(summary['num_experts'], 'expert')}{base};"
        f" {show_count(summary['num_tensors'], 'tensor')} in {show_count(summary['num_shards'], 'shard')},"
        f" {show_count(len(summary['files']), 'file')}",
        f"  read     {show_bytes(summary['bytes_read'])}",
        f"  compute  {summary['flops']:.3g} floating point operations",
        f"  write    {show_bytes(summary['bytes_written'])}: {', '.join(f['name'] for f in summary['files'][:3])}"
        + (", ..." if len(summary["files"]) > 3 else ""),
        f"  keep     {show_bytes(summary['spectrum_bytes'])} of spectra in the store"
        + (f", {show_bytes(summary['sums_bytes'])} of sums over experts" if summary["sums_bytes"] else ""),
        f"  memory   at most {show_bytes(summary['peak_bytes'])} per worker"
        + (f", for {largest['name']} {'x'.join(map(str, largest['shape']))}" if largest else ""),
    ]
    lines += _arrival_lines(summary["experts"])
    for row in summary["treatments"]:
        count = show_count(row["num_tensors"], "tensor")
        lines.append(f"  {count:>14}: {row['method'] or row['action']} ({row['reason']})")
    return lines


def _arrival_lines(experts: list[dict[str, Any]]) -> list[str]:
    """Return a line for each expert of which something is left out, and one for those that arrive whole."""
    partial = [row for row in experts if row["num_left_out"]]
    whole = len(experts) - len(partial)
    lines = [f"  experts  {show_count(whole, 'expert')} with a place for every tensor"] if whole else []
    for row in partial[:_MOST_EXPERTS_SHOWN]:
        names = ", ".join(row["left_out"][:2]) + (", ..." if row["num_left_out"] > 2 else "")
        lines.append(
            f"  experts  {row['name']}: {show_count(row['tensors_placed'], 'tensor')} with a place"
            f" ({row['share_placed']:.1%} of its parameters), {row['num_left_out']} left out: {names}"
        )
    if len(partial) > _MOST_EXPERTS_SHOWN:
        lines.append(
            f"  experts  and {len(partial) - _MOST_EXPERTS_SHOWN} more with tensors left out; --json lists all"
        )
    return lines


def _kind_lines(rows: list[dict[str, Any]], width: int | None) -> list[str]:
    """Return one line for the tensors of a kind. Only names are shortened, and only on a terminal."""
    columns = ("tensors", "shape", "treatment", "read", "memory", "name")
    cells = [
        (
            str(row["num_tensors"]),
            "x".join(map(str, row["shape"])) or "scalar",
            row["method"] or row["action"],
            show_bytes(row["bytes_read"]),
            show_bytes(row["peak_bytes"]),
            row["name"],
        )
        for row in rows[:_MOST_KINDS_SHOWN]
    ]
    lines = table_lines(columns, cells, width)
    if len(rows) > _MOST_KINDS_SHOWN:
        lines.append(f"... and {show_count(len(rows) - _MOST_KINDS_SHOWN, 'more kind')} of tensors; --json lists all")
    return lines
