"""Planning takes little time: no import of torch, no quadratic step. Limits are multiples of a measured unit."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ...cpu_unit import cpu_seconds, cpu_unit

TEXT = "merge_method: {}\nbase_model: base\nmodels: [{}]\n"


def mixture(layers: int, experts: int = 128) -> dict[str, tuple[int, ...]]:
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight": (64, 64)
        for layer in range(layers)
        for expert in range(experts)
        for part in ("gate", "up", "down")
    }


@pytest.mark.parametrize("method", ["swudi_a", "ties"])
def test_ten_thousand_tensors(method: str, model: Any, plan_of: Any) -> None:
    names = mixture(26)
    models = [model(name, names) for name in ("base", "a", "b", "c", "d")]
    assert len(names) > 9900
    # measured: 31 to 42 units, where a unit is 0.04 s
    assert cpu_seconds(lambda: plan_of(TEXT.format(method, "a, b, c, d"), *models)) < 110 * cpu_unit()


def test_a_70b_model_with_eight_experts(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    names = llama_tensors(80, hidden=8192, inner=28672, vocabulary=128256, kv=1024)
    experts = [f"e{index}" for index in range(8)]
    models = [model(name, names, dtype="BF16") for name in ("base", *experts)]
    # measured: 3 units
    assert cpu_seconds(lambda: plan_of(TEXT.format("swudi", ", ".join(experts)), *models)) < 25 * cpu_unit()


def test_time_grows_linearly_with_the_number_of_tensors(model: Any, plan_of: Any) -> None:
    times = []
    for layers in (6, 24):
        names = {f"bert.{name}": shape for name, shape in mixture(layers).items()}
        bare = {name.removeprefix("bert."): shape for name, shape in names.items()}
        models = [model("base", names), model("a", bare)]
        times.append(min(cpu_seconds(lambda m=models: plan_of(TEXT.format("swudi", "a"), *m)) for _ in range(2)))
    assert times[1] < 10 * times[0]  # four times the tensors


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, eigenmerge.core.planning.planner; from eigenmerge.core.recipe.recipe import recipe_from_mapping;"
        "recipe_from_mapping({'merge_method': 'swudi', 'models': ['a']}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
