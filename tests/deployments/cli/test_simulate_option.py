"""`eigenmerge plan --simulate`: numbers of workers, machines, and the printed table."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.planning.cost.machines import MACHINES
from eigenmerge.core.planning.plan import LayerShard, OutputFile, Plan, RunSettings, TensorPlan
from eigenmerge.deployments.cli.simulate_option import find_machine, run_simulations, simulation_lines, simulation_rows


def make_plan() -> Plan:
    tensor = TensorPlan("w", (8,), "F32", "mean", "1-D: mean delta", None, flops=1e12)
    shards = tuple(LayerShard(i, (tensor,), f"parts/{i}", 10**9, 10**8, 1e12, 10**12) for i in range(4))
    return Plan("run", {}, RunSettings(), None, (), shards, (OutputFile("model.safetensors", (0, 1, 2, 3), 4),), ())


def test_a_table_its_source_and_warnings() -> None:
    simulations = run_simulations(make_plan(), "1, 2,64", "cpu-2core")
    lines = simulation_lines(simulations, MACHINES["cpu-2core"].source)
    assert len(lines) == 1 + 3 + 1 + 3
    assert "largest shard" in lines[3]
    assert "measured" in lines[4]
    assert "needs 1 TB" in lines[5]
    assert [row["num_workers"] for row in simulation_rows(simulations)] == [1, 2, 64]


@pytest.mark.parametrize("workers", ["", "0", "1,,2", "many", "-1", "1.5", "9999999"])
def test_invalid_numbers_of_workers(workers: str) -> None:
    with pytest.raises(RecipeError, match="expected numbers of workers"):
        run_simulations(make_plan(), workers)


def test_a_machine_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(MACHINES["cpu-2core"].model_copy(update={"name": "mine"}).model_dump_json())
    assert find_machine(str(path)).name == "mine"
    path.write_text('{"name": "mine"}')
    with pytest.raises(RecipeError, match="matmul_flops: Field required"):
        find_machine(str(path))
    path.write_text("nothing")
    with pytest.raises(RecipeError, match="JSON"):
        find_machine(str(path))
    with pytest.raises(RecipeError, match="known machines: cpu-2core, h100-80gb"):
        find_machine("h100")
