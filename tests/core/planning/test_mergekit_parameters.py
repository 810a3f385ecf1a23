"""Parameters, gradients and source layers equal those of mergekit, for every form of value and every scope."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.planning.planner import plan_merge
from eigenmerge.core.recipe.recipe import recipe_from_mapping

CASES = json.loads((Path(__file__).parents[2] / "golden" / "mergekit_parameters.json").read_text())["cases"]


def name_of(case: dict[str, Any]) -> str:
    return f"{case['recipe']['merge_method']}-{'slices' if 'slices' in case['recipe'] else 'models'}"


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
def test_parameters_equal_those_of_mergekit(
    case: dict[str, Any], model: Any, llama_tensors: Any, tensors_of: Any
) -> None:
    listings = {
        name: model(name, llama_tensors(4), config={"num_hidden_layers": 4})
        for name in ("models/base", "models/e0", "models/e1")
    }
    recipe = recipe_from_mapping(case["recipe"])
    base = listings[recipe.base_model] if recipe.base_model else None
    plan = plan_merge(recipe, base, [listings[name] for name in recipe.expert_references])
    found = tensors_of(plan)
    stored = {
        (name, source.start): tensor for name, item in listings.items() for tensor, source in item.tensors.items()
    }
    for name, expected in case["tensors"].items():
        tensor = found[name]
        assert {key: tensor.parameters[key] for key in expected["shared"]} == pytest.approx(expected["shared"])
        experts = {plan.experts[expert.expert].name: expert for expert in tensor.experts}
        for model_name, parameters in expected["experts"].items():
            if model_name in experts:
                own = experts[model_name].parameters
                assert {key: own[key] for key in parameters} == pytest.approx(parameters)
            else:
                assert model_name == "models/base"  # mergekit lists it, task vectors do without
        for model_name, source_name in expected["sources"].items():
            if model_name in experts:
                source = experts[model_name].full
            elif model_name == recipe.base_model and tensor.base is not None:
                source = tensor.base
            else:
                continue
            assert stored[model_name, source.start] == source_name
