"""The command line of `eigenmerge deploy` and of `plan --simulate`: what users type, and what they get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import DeployError, RecipeError
from eigenmerge.core.planning.cost.machines import MACHINES
from eigenmerge.core.planning.plan import LayerShard, OutputFile, Plan, RunSettings, TensorPlan
from eigenmerge.deployments.cli.deploy_command import announce, deploy, parse_variables
from eigenmerge.deployments.cli.simulate_option import find_machine, run_simulations, simulation_lines, simulation_rows


def make_plan() -> Plan:
    tensor = TensorPlan("w", (8,), "F32", "mean", "1-D: mean delta", None, flops=1e12)
    shards = tuple(LayerShard(i, (tensor,), f"parts/{i}", 10**9, 10**8, 1e12, 10**12) for i in range(4))
    return Plan("run", {}, RunSettings(), None, (), shards, (OutputFile("model.safetensors", (0, 1, 2, 3), 4),), ())


def test_variables_are_json_or_text() -> None:
    found = parse_variables(["gpus=8", "memory=64Gi", 'env={"A": "b=c"}', "name=x=y"])
    assert found == {"gpus": 8, "memory": "64Gi", "env": {"A": "b=c"}, "name": "x=y"}


@pytest.mark.parametrize("pair", ["gpus", "=8", ""])
def test_a_variable_needs_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(DeployError, match="NAME=VALUE"):
        parse_variables([pair])


def test_what_deploy_refuses() -> None:
    with pytest.raises(DeployError, match="'nomad' is unknown"):
        deploy("nomad", store="/store")
    with pytest.raises(DeployError, match="--api-url"):
        deploy("process", store="/store", api_url=None)
    with pytest.raises(DeployError, match="--api-url"):
        announce("/registry", "expert", api_url="")


def test_a_simulation_is_printed_with_what_it_rests_on() -> None:
    simulations = run_simulations(make_plan(), "1, 2,64", "cpu-2core")
    lines = simulation_lines(simulations, MACHINES["cpu-2core"].source)
    assert len(lines) == 1 + 3 + 1 + 3
    assert "largest shard" in lines[3]
    assert "measured" in lines[4]
    assert "needs 1 TB" in lines[5]
    assert [row["num_workers"] for row in simulation_rows(simulations)] == [1, 2, 64]


@pytest.mark.parametrize("workers", ["", "0", "1,,2", "many", "-1", "1.5", "9999999"])
def test_what_is_no_number_of_workers(workers: str) -> None:
    with pytest.raises(RecipeError, match="expected numbers of workers"):
        run_simulations(make_plan(), workers)


def test_a_machine_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(MACHINES["cpu-2core"].model_copy(update={"name": "mine"}).model_dump_json())
    assert find_machine(str(path)).name == "mine"
    path.write_text('{"name": "mine"}')
    with pytest.raises(RecipeError, match="matmul_flops: Field required"):
        find_machine(str(path))
    path.write_text("nothing")
    with pytest.raises(RecipeError, match="JSON"):
        find_machine(str(path))
    with pytest.raises(RecipeError, match="known are cpu-2core, h100-80gb"):
        find_machine("h100")
