"""`eigenmerge plan RECIPE --simulate 1,8,64 [--machine NAME|FILE]`: time, money and the limit on that many workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from ...core.errors import RecipeError
from .options import show_bytes, show_seconds

if TYPE_CHECKING:
    from ...core.planning.cost.machines import MachineModel
    from ...core.planning.cost.simulate import Simulation
    from ...core.planning.plan import Plan

DEFAULT_MACHINE = "h100-80gb"
SimulateOption = Annotated[
    str | None,
    typer.Option("--simulate", metavar="1,8,64", help="Time, cost and limit of the run on that many workers."),
]
MachineOption = Annotated[
    str,
    typer.Option(
        "--machine",
        metavar="NAME|FILE",
        help="What a worker of --simulate can do: cpu-2core, h100-80gb, or a JSON file"
        " (tests/benchmarks/layer_costs.py --json makes one).",
    ),
]


def run_simulations(plan: Plan, workers: str, machine: str = DEFAULT_MACHINE) -> list[Simulation]:
    """One simulation per number of workers.

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
    """A machine by name, or from a JSON file.

    Raises
    ------
    RecipeError : neither a known name nor a valid file
    """
    from ...core.planning.cost.machines import MACHINES, MachineModel

    if name_or_path in MACHINES:
        return MACHINES[name_or_path]
    try:
        return MachineModel.model_validate_json(Path(name_or_path).read_bytes())
    except OSError:
        known = ", ".join(MACHINES)
        raise RecipeError(f"--machine {name_or_path!r}: no such machine or file; known are {known}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RecipeError(f"--machine {name_or_path}: {place}: {first['msg']}") from None


def simulation_lines(simulations: list[Simulation], source: str) -> list[str]:
    """A table, and below it what its numbers rest on."""
    lines = [f"{'workers':>7}  {'time':>12}  {'cost':>9}  {'busy':>5}  limit"]
    for row in simulations:
        limit = row.limit
        if limit == "largest shard":
            limit += f": {show_seconds(row.largest_shard_seconds)}, {row.largest_shard.split(' .. ')[0]}"
        lines.append(
            f"{row.num_workers:>7}  {show_seconds(row.seconds):>12}  {row.cost:>9.2f}  {row.efficiency:>5.0%}  {limit}"
        )
    lines.append(f"on {simulations[0].machine} ({source})")
    for name, needed in simulations[0].too_large[:3]:
        lines.append(f"warning: shard {name} needs {show_bytes(needed)}, more than this machine has")
    return lines


def simulation_rows(simulations: list[Simulation]) -> list[dict[str, Any]]:
    """For --json."""
    return [simulation.as_dict() for simulation in simulations]
