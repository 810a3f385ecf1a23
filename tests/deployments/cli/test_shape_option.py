"""`eigenmerge plan --shape`: plans without models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.deployments.cli.commands.plan_command import plan


def test_a_plan_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    plan(shape="llama-1b", experts=3, method="ties")
    out = capsys.readouterr().out
    assert "ties: 3 experts on base; 146 tensors" in out
    assert "9.89 GB" in re.sub(" +", " ", out)  # 4 models of 2.47 GB


def test_adapters_cost_less_than_full_experts(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {}
    for rank in (None, 8):
        plan(shape="llama-1b", experts=2, rank=rank, as_json=True)
        costs[rank] = json.loads(capsys.readouterr().out)
    assert costs[8]["method"] == costs[None]["method"] == "swudi_a"
    assert costs[8]["flops"] < costs[None]["flops"] / 100


def test_a_recipe_whose_models_do_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = (
        "name: half\nmerge_method: linear\nmodels: [/no/a, s3://none/b]\n---\nmerge_method: swudi\n"
        "base_model: /no/base\nmodels: [half, /no/c+/no/adapter]\ntokenizer_source: union\n"
        "parameters: {exp_time: 100, rank_ratio: 0.5}\n"
    )
    plan(recipe, shape=str(tmp_path / "config.json"), as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert (first["method"], second["method"]) == ("linear", "swudi")
    assert [row["name"] for row in second["experts"]] == ["OUT.stages/half", "/no/c+/no/adapter"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "llama-7b"}, "no such shape; expected a config.json or one of .*did you mean"),
        ({"shape": "none/config.json"}, "cannot be read"),
        ({"shape": "llama-1b", "method": "tie"}, "unknown merge method 'tie'; did you mean 'ties'"),
        (
            {"recipe": "merge_method: ties\nbase_model: b\nmodels: [x]\n", "shape": "llama-1b", "experts": 2},
            "without a recipe",
        ),
        ({"experts": 3}, "--experts is for --shape"),
        ({}, "RECIPE is missing"),
    ],
)
def test_wrong_combinations_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(**arguments)  # type: ignore[arg-type]
