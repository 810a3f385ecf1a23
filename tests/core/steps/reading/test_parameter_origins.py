"""Where parameters came from, in every place of a recipe that can set one, compared with the values of a real plan."""

from __future__ import annotations

from typing import Any

from eigenmerge.core.output.read_manifest import Manifest, ManifestTensor
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.reading.parameter_origins import UNKNOWN, parameter_origins, weight_origins

UP, DOWN, QUERY = (f"model.layers.1.{name}.weight" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"))


def manifest_of(data: dict[str, Any]) -> Manifest:
    """A manifest with the parameters that the planner gives to each tensor."""
    plan = make_plan(recipe_from_mapping(data))
    orders: list[list[int]] = []
    rows: list[ManifestTensor] = []
    for shard in plan.shards:
        for tensor in shard.tensors:
            orders.append([expert.expert for expert in tensor.experts])
            rows.append(
                ManifestTensor(
                    name=tensor.name,
                    shape=list(tensor.shape),
                    dtype="F32",
                    action=tensor.action,
                    sha256="0" * 64,
                    method=tensor.method,
                    parameters=dict(tensor.parameters) if tensor.method else {},
                    weights=[float(str(expert.parameters.get("weight", 1.0))) for expert in tensor.experts],
                    expert_order=len(orders) - 1,
                )
            )
    experts = [{"name": model.name, "fingerprint": model.fingerprint} for model in plan.experts]
    return Manifest.model_validate(
        {
            "format": 1,
            "eigenmerge": "0",
            "run_key": plan.run_key,
            "recipe": dict(plan.recipe),
            "base": None,
            "experts": experts,
            "expert_orders": orders,
            "files": [],
            "side_files": {},
            "tensors": rows,
        }
    )


def origins(data: dict[str, Any], name: str) -> tuple[dict[str, str], list[str]]:
    manifest = manifest_of(data)
    recipe = recipe_from_mapping(manifest.recipe)
    (tensor,) = [row for row in manifest.tensors if row.name == name]
    return parameter_origins(recipe, manifest, tensor), weight_origins(recipe, manifest, tensor)


def test_rules_models_filters_gradients_and_defaults(make_models: Any) -> None:
    models = make_models(num_experts=2, layers=2)
    data = models.recipe("swudi")
    data["models"][1]["parameters"] = {"weight": [0.5, 1.0]}
    data["parameters"] = {
        "rank_ratio": [{"filter": "mlp", "value": 0.5}, {"value": 0.75}],
        "exp_time": "1e2",
        "weight": 0.9,
    }
    data["rules"] = [
        {"match": "*.q_proj.weight", "parameters": {"rank_ratio": 0.25}},
        {"match": "*.down_proj.weight", "method": "task_arithmetic", "parameters": {"scale": 0.3}},
    ]
    found, weights = origins(data, UP)
    assert found["rank_ratio"] == "parameters (filter 'mlp')" and found["exp_time"] == "parameters"
    assert found["scale"] == "default"
    assert weights == ["parameters", "models[1].parameters (gradient over the layers)"]
    found, _ = origins(data, QUERY)
    assert found["rank_ratio"] == "rules[0].parameters" and found["exp_time"] == "parameters"
    found, _ = origins(data, DOWN)
    assert found["scale"] == "rules[1].parameters"
    assert "parameters" not in found.values()  # those of the recipe belong to another method


def test_a_preset(make_models: Any) -> None:
    data = make_models(num_experts=2, layers=2).recipe("swudi", preset="clip-vit-b32-8", parameters={"rank_ratio": 0.5})
    found, _ = origins(data, UP)
    assert found["exp_time"] == "parameters, as in preset clip-vit-b32-8" and found["rank_ratio"] == "parameters"


def test_slices(make_models: Any) -> None:
    models = make_models(num_experts=2, layers=2)
    slices = [
        {
            "sources": [{"model": str(path), "layer_range": [index, index + 1]} for path in models.experts],
            "parameters": {"rank_ratio": 0.5 + 0.25 * index},
        }
        for index in range(2)
    ]
    slices[1]["sources"][0]["parameters"] = {"weight": 0.5}
    data = {"merge_method": "swudi", "base_model": str(models.base), "slices": slices}
    found, weights = origins(data, UP)
    assert found["rank_ratio"] == "slices[1].parameters" and found["exp_time"] == "default"
    assert weights == ["slices[1].sources[0].parameters", "default"]


def test_a_value_that_the_recipe_does_not_give_has_no_place(make_models: Any) -> None:
    data = make_models(num_experts=1, layers=1).recipe("swudi", parameters={"rank_ratio": 0.5})
    manifest = manifest_of(data)
    tensor = next(row for row in manifest.tensors if row.method == "swudi")
    changed = tensor.model_copy(update={"parameters": {**tensor.parameters, "rank_ratio": 0.6}})
    assert parameter_origins(recipe_from_mapping(manifest.recipe), manifest, changed)["rank_ratio"] == UNKNOWN
