"""What merging a 70B Llama takes on 1, 8 and 64 workers: the tables of docs/scale.md, from plans and the simulation.

    PYTHONPATH=tests/synthetic/plugin python tests/benchmarks/scale_70b.py
    PYTHONPATH=tests/synthetic/plugin python tests/benchmarks/scale_70b.py --machine machine.json
    PYTHONPATH=tests/synthetic/plugin python tests/benchmarks/scale_70b.py --write docs/scale.md

No weights are read or made: the plans come from the headers of the synthetic file system.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from eigenmerge.core.planning.cost.machines import MACHINES, MachineModel
from eigenmerge.core.planning.cost.simulate import Simulation, simulate, split_work
from eigenmerge.core.planning.plan import Plan
from eigenmerge.core.planning.summary import largest_tensor
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe

WORKERS = (1, 8, 64)
BEGIN, END = "<!-- tables: written by tests/benchmarks/scale_70b.py -->", "<!-- end of tables -->"
CASES = [
    ("SWUDI-A, full experts, spectra not kept", "swudi_a", "expert", "none", "inputs"),
    ("the same, `side: smaller`", "swudi_a", "expert", "none", "smaller"),
    ("the same, `side: both`", "swudi_a", "expert", "none", "both"),
    ("SWUDI-A, full experts, spectra kept", "swudi_a", "expert", "full", "inputs"),
    ("SWUDI-A, full experts, `spectra: top`", "swudi_a", "expert", "top", "inputs"),
    ("SWUDI-A, LoRA adapters of rank 16", "swudi_a", "lora", "none", "inputs"),
    ("the same, `side: both`, LoRA", "swudi_a", "lora", "none", "both"),
    ("task arithmetic, full experts", "task_arithmetic", "expert", "none", None),
]


def plan_of(method: str, member: str, spectra: str, side: str | None = None, num_experts: int = 8) -> Plan:
    models = "".join(f"  - model: synthetic://llama-70b/{member}{index}\n" for index in range(num_experts))
    text = f"merge_method: {method}\nbase_model: synthetic://llama-70b/base\nspectra: {spectra}\nmodels:\n{models}"
    text += f"parameters: {{side: {side}}}\n" if side is not None else ""
    return make_plan(read_recipe(text), device="cuda")


def time_text(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def limit_text(result: Simulation) -> str:
    if result.limit != "largest shard":
        return result.limit
    return f"largest shard ({result.largest_shard.split(' .. ')[0]}, {result.largest_shard_seconds:.0f} s)"


def schedule_table(plans: dict[str, Plan], machine: MachineModel) -> list[str]:
    lines = [
        f"On `{machine.name}`:",
        "",
        "| merge of 8 experts | workers | time | busy | cost | limit |",
        "|---|---|---|---|---|---|",
    ]
    for title, plan in plans.items():
        for workers in WORKERS:
            result = simulate(plan, machine, workers)
            lines.append(
                f"| {title} | {workers} | {time_text(result.seconds)} | {result.efficiency:.0%} |"
                f" {result.cost:.2f} | {limit_text(result)} |"
            )
    return lines


def work_table(plans: dict[str, Plan]) -> list[str]:
    lines = [
        "| merge of 8 experts | read | written | kept | products | eigh | svd | elementwise | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, plan in plans.items():
        work = [split_work(tensor) for shard in plan.shards for tensor in shard.tensors]
        matmul, eigh = sum(part.matmul for part in work), sum(part.eigh for part in work)
        svd, elementwise = sum(part.svd for part in work), sum(part.elementwise for part in work)
        largest = largest_tensor(plan)
        name = largest["name"].removesuffix(".weight").rpartition(".")[2] if largest else ""
        lines.append(
            f"| {title} | {plan.bytes_read / 1e9:.0f} GB | {plan.bytes_written / 1e9:.0f} GB |"
            f" {plan.spectrum_bytes / 1e9:.0f} GB | {matmul / 1e15:.3g} PFLOP | {eigh / 1e15:.3g} PFLOP |"
            f" {svd / 1e15:.3g} PFLOP | {elementwise / 1e15:.3g} PFLOP | {plan.peak_bytes / 1e9:.1f} GB ({name}) |"
        )
    return lines


def sensitivity_table(plan: Plan, machine: MachineModel) -> list[str]:
    changes = {
        "unchanged": {},
        "eigh twice as fast": {"eigh_flops": machine.eigh_flops * 2},
        "eigh half as fast": {"eigh_flops": machine.eigh_flops / 2},
        "products half as fast": {"matmul_flops": machine.matmul_flops / 2},
        "store a tenth as fast": {
            "read_bandwidth": machine.read_bandwidth / 10,
            "write_bandwidth": machine.write_bandwidth / 10,
            "store_bandwidth": machine.store_bandwidth and machine.store_bandwidth / 10,
        },
        "reading not overlapped": {"overlapped": False},
    }
    lines = [
        f"| {next(iter(CASES))[0]} | "
        + " | ".join(f"{workers} worker{'s' if workers > 1 else ''}" for workers in WORKERS)
        + " |"
    ]
    lines.append("|---|" + "---|" * len(WORKERS))
    for title, change in changes.items():
        changed = machine.model_copy(update=change)
        results = [simulate(plan, changed, workers) for workers in WORKERS]
        cells = " | ".join(f"{time_text(result.seconds)}, {result.limit}" for result in results)
        lines.append(f"| {title} | {cells} |")
    return lines


def tables(machine: MachineModel) -> str:
    plans = {title: plan_of(*case) for title, *case in CASES}
    first = plans[CASES[0][0]]
    parts = [work_table(plans), schedule_table(plans, machine), sensitivity_table(first, machine)]
    return "\n\n".join("\n".join(part) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="h100-80gb", help="a name, or a file that layer_costs.py --json wrote")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the tables in this page")
    arguments = parser.parse_args()
    named = MACHINES.get(arguments.machine)
    text = tables(named or MachineModel.model_validate_json(Path(arguments.machine).read_bytes()))
    if arguments.write is None:
        print(text)
        return
    page = arguments.write.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
