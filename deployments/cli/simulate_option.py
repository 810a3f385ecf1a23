"""`eigenmerge plan --simulate`: the time, cost and limiting factor of a merge on several numbers of workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.errors import RecipeError
from .options import show_bytes, show_seconds

if TYPE_CHECKING:
    from ...core.planning.cost.machines import MachineModel
    from ...core.planning.cost.simulate import Simulation
    from ...core.planning.plan import Plan

DEFAULT_MACHINE = "h100-80gb"
SimulateOption = Annotated[
    str | None,
    typer.Option(
        "--simulate", metavar="N,N,...", help="Project time, cost and limiting factor for these numbers of workers."
    ),
]
MachineOption = Annotated[
    str,
    typer.Option(
        "--machine",
        metavar="NAME|FILE",
        help="Machine of one worker for --simulate: cpu-2core, h100-80gb, or a JSON file"
        " (tests/benchmarks/layer_costs.py --json writes one).",
    ),
]


def run_simulations(plan: Plan, workers: str, machine: str = DEFAULT_MACHINE) -> list[Simulation]:
    """Return one simulation per number of workers.

    Raises
    ------
    RecipeError : not a list of numbers, or no such machine
    """
    from ...core.planning.cost.simulate import simulate

    counts = [text.strip() for text in workers.split(",")]
    if not all(text.isdecimal() and 1 <= int(text) <= 100_000 for text in counts):
        raise RecipeError(f"--simulate {workers!r}: expected numbers of workers such as 1,8,64")
    model = find_machine(machine)
    return [simulate(plan, model, int(text)) for text in counts]


def find_machine(name_or_path: str) -> MachineModel:
    """Return the machine of this name, or of this JSON file.

    Raises
    ------
    RecipeError : neither a known name nor a valid file
    """
    from pydantic import ValidationError

    from ...core.planning.cost.machines import MACHINES, MachineModel

    if name_or_path in MACHINES:
        return MACHINES[name_or_path]
    try:
        return MachineModel.model_validate_json(Path(name_or_path).read_bytes())
    except OSError:
        known = ", ".join(MACHINES)
        raise RecipeError(f"--machine {name_or_path!r}: no such machine or file; known machines: {known}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise RecipeError(f"--machine {name_or_path}: {field}: {first['msg']}") from None


def simulation_lines(simulations: list[Simulation], source: str) -> list[str]:
    """Return a table, the source of its numbers, and warnings, as lines."""
    lines = [f"{'workers':>7}  {'time':>12}  {'cost':>9}  {'busy':>5}  limit"]
    for row in simulations:
        limit = row.limit
        if limit == "largest shard":
            limit += f": {show_seconds(row.largest_shard_seconds)}, {row.largest_shard.split(' .. ')[0]}"
        lines.append(
            f"{row.num_workers:>7}  {show_seconds(row.seconds):>12}  {row.cost:>9.2f}  {row.efficiency:>5.0%}  {limit}"
        )
    lines.append(f"machine {simulations[0].machine}: {source}")
    for name, needed in simulations[0].too_large[:3]:
        lines.append(f"warning: shard {name} needs {show_bytes(needed)} of memory, more than this machine has")
    return lines


def simulation_rows(simulations: list[Simulation]) -> list[dict[str, Any]]:
    """Return the simulations as JSON data."""
    return [simulation.as_dict() for simulation in simulations]
