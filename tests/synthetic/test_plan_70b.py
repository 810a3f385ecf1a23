"""The plan of a 70B model with eight experts: made in seconds from headers, with shards that keep many workers busy."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.planning.cost.machines import MACHINES
from eigenmerge.core.planning.cost.simulate import simulate
from eigenmerge.core.planning.plan import Plan
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe

H100 = MACHINES["h100-80gb"]
PARAMETERS = 70_553_706_496
# rank 16, 80 blocks: in + out features of q and o, k and v, gate and up and down
ADAPTER_PARAMETERS = 80 * 16 * (2 * (8192 + 8192) + 2 * (1024 + 8192) + 3 * (28672 + 8192))


def recipe_text(method: str, member: str, num_experts: int = 8, model: str = "llama-70b", **keys: str) -> str:
    lines = [f"merge_method: {method}", f"base_model: synthetic://{model}/base", "models:"]
    lines += [f"  - model: synthetic://{model}/{member}{index}" for index in range(num_experts)]
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]) + "\n"


def plan_of(method: str, member: str, num_experts: int = 8, model: str = "llama-70b", **keys: str) -> Plan:
    return make_plan(read_recipe(recipe_text(method, member, num_experts, model, **keys)))


@pytest.fixture(scope="module")
def full() -> Plan:
    return plan_of("swudi_a", "expert", spectra="none")


@pytest.fixture(scope="module")
def adapters() -> Plan:
    return plan_of("swudi_a", "lora", spectra="none")


def test_bytes_are_those_of_the_models(full: Plan, adapters: Plan) -> None:
    assert full.num_tensors == 723
    assert full.bytes_read == 9 * 2 * PARAMETERS
    assert 2 * PARAMETERS < full.bytes_written < 2 * PARAMETERS * 1.0001
    assert adapters.bytes_read == 2 * PARAMETERS + 8 * 2 * ADAPTER_PARAMETERS
    assert adapters.flops < full.flops / 1000


def test_memory_depends_only_on_the_largest_tensor(full: Plan) -> None:
    def peaks(plan: Plan) -> dict[str, int]:
        return {t.name: t.peak_bytes for shard in plan.shards for t in shard.tensors if "layers.0." in t.name}

    few, many = peaks(full), peaks(plan_of("swudi_a", "expert", 20, spectra="none"))
    # Small tensors of more experts are read ahead (core/planning/cost/experts_ahead.py), in at most 32 MiB.
    assert {name for name in few if many[name] != few[name]} == {name for name in few if "layernorm" in name}
    assert all(0 <= many[name] - few[name] <= 32 * 2**20 for name in few)
    assert peaks(full) == peaks(plan_of("swudi_a", "expert", 8, "llama-70b.blocks-0-0", spectra="none"))
    assert full.peak_bytes < 32e9


def processor_seconds(command: list[Any], environment: dict[str, str]) -> float:
    """Return the CPU time of a command, the smaller of two runs."""
    times = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_the_command_takes_less_time_than_two_imports_of_torch(
    synthetic_environment: dict[str, str], tmp_path: Path
) -> None:
    """About a second of CPU time. The import is measured in the same run, so that the machine's speed cancels out."""
    (tmp_path / "recipe.yml").write_text(recipe_text("swudi_a", "expert"))
    environment = {**synthetic_environment, "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "eigenmerge", "plan", tmp_path / "recipe.yml", "--json"]
    unit = processor_seconds([sys.executable, "-c", "import torch"], environment)
    seconds = processor_seconds(command, environment)
    print(f"plan {seconds:.2f} s, import of torch {unit:.2f} s")
    assert seconds < 2 * unit


def test_the_plan_keeps_8_and_64_gpus_busy(full: Plan) -> None:
    eight, many = simulate(full, H100, 8), simulate(full, H100, 64)
    assert eight.efficiency > 0.9
    assert many.efficiency > 0.6
    assert not eight.too_large
    # the largest shard takes little more time than the mean load of one of 64 workers
    assert many.bounds["largest shard"] < 1.5 * many.bounds["compute"]


def test_adapters_are_not_limited_by_arithmetic(adapters: Plan) -> None:
    assert simulate(adapters, H100, 8).limit != "compute"
    assert simulate(adapters, H100, 8).bounds["compute"] < 5
