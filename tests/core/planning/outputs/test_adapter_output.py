"""Plans whose output is an adapter."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.planning.shards import output_entries

SWUDI = "merge_method: swudi_a\nbase_model: base\nmodels: [a, b]\noutput: adapter\n"
Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def factors(name: str, shape: tuple[int, int], rank: int = 2) -> dict[str, tuple[int, int]]:
    at = "base_model.model." + name.removesuffix(".weight")
    return {f"{at}.lora_A.weight": (rank, shape[1]), f"{at}.lora_B.weight": (shape[0], rank)}


@pytest.fixture
def models(model: Any, adapter: Any, llama_tensors: Any) -> list[Any]:
    a = adapter("a", factors(Q, (8, 8)) | factors(UP, (16, 8)), {"task_type": "CAUSAL_LM"})
    b = adapter("b", factors(Q, (8, 8), 3), {"r": 3, "task_type": "CAUSAL_LM"})
    return [model("base", llama_tensors()), a, b]


def config_of(plan: Any) -> dict[str, Any]:
    (side,) = plan.side_files
    assert side.name == "adapter_config.json"
    return json.loads(side.content)


def test_only_adapted_weights_are_written_as_factors(models: list[Any], plan_of: Any, tensors_of: Any) -> None:
    plan = plan_of(SWUDI, *models)
    found = tensors_of(plan)
    assert set(found) == {Q, UP}
    assert [file.name for file in plan.files] == ["adapter_model.safetensors"]
    entries = {entry.name: entry.shape for entry in output_entries(found[Q])}
    at = "base_model.model." + Q.removesuffix(".weight")
    assert entries == {f"{at}.lora_A.weight": (5, 8), f"{at}.lora_B.weight": (8, 5)}
    assert found[Q].adapter.rank == 5
    assert found[UP].adapter.rank == 2
    assert found[Q].base is None
    assert plan.files[0].num_bytes > sum(entry.num_bytes for name in found for entry in output_entries(found[name]))
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_the_config_has_scaling_one(models: list[Any], plan_of: Any) -> None:
    config = config_of(plan_of(SWUDI, *models))
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (5, 5, "CAUSAL_LM")
    assert config["rank_pattern"] == config["alpha_pattern"] == {r"^model\.layers\.1\.mlp\.up_proj": 2}
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    assert config["base_model_name_or_path"] == "base"


def test_peft_takes_the_config(models: list[Any], plan_of: Any) -> None:
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    config = peft.LoraConfig(**{k: v for k, v in config_of(plan_of(SWUDI, *models)).items() if k != "peft_type"})
    config.task_type = config.base_model_name_or_path = None
    net = torch.nn.Module()
    net.model = torch.nn.Module()
    net.model.layers = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Module()])
    net.model.layers[0].self_attn = torch.nn.Module()
    net.model.layers[0].self_attn.q_proj = torch.nn.Linear(8, 8)
    net.model.layers[1].mlp = torch.nn.Module()
    net.model.layers[1].mlp.up_proj = torch.nn.Linear(8, 16)
    wrapped = peft.get_peft_model(net, config).base_model.model
    for module, rank in ((wrapped.model.layers[0].self_attn.q_proj, 5), (wrapped.model.layers[1].mlp.up_proj, 2)):
        assert module.scaling["default"] == 1.0
        assert module.r["default"] == rank


def test_a_chosen_rank(models: list[Any], plan_of: Any, tensors_of: Any) -> None:
    text = SWUDI.replace("output: adapter", "output: {format: adapter, rank: 3}")
    found = tensors_of(plan_of(text, *models))
    assert (found[Q].adapter.rank, found[UP].adapter.rank) == (3, 2)
    assert found[Q].spectrum_key == tensors_of(plan_of(SWUDI, *models))[Q].spectrum_key
    keys = [plan_of(one, *models).shards[0].part_key for one in (text, SWUDI)]
    assert keys[0] != keys[1]


def test_rank_is_never_more_than_the_matrix_has(model: Any, adapter: Any, plan_of: Any, tensors_of: Any) -> None:
    base = model("base", {"w.weight": (4, 8)})
    experts = [adapter(name, factors("w.weight", (4, 8), 3), {"r": 3}) for name in "ab"]
    assert tensors_of(plan_of(SWUDI, base, *experts))["w.weight"].adapter.rank == 4


def test_embeddings_and_saved_modules(
    model: Any, adapter: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    at = "base_model.model.model.embed_tokens.lora_embedding_"
    names = factors(Q, (8, 8)) | {f"{at}A": (2, 32), f"{at}B": (8, 2), "base_model.model.lm_head.weight": (32, 8)}
    plan = plan_of(SWUDI.replace("a, b", "a"), model("base", llama_tensors()), adapter("a", names))
    found = tensors_of(plan)
    entries = {entry.name: entry.shape for tensor in found.values() for entry in output_entries(tensor)}
    assert entries == names
    assert config_of(plan)["modules_to_save"] == ["lm_head"]
    assert found["model.embed_tokens.weight"].action == "mean"


@pytest.mark.parametrize(
    ("method", "parameters", "scale"),
    [
        ("average", "{scale: 0.5}", 0.5),
        ("task_arithmetic", "{lambda: 0.5, weight: 3}", 1.0),
        ("task_arithmetic", "{normalize: true, weight: 4}", 0.25),
        ("linear", "{weight: 2}", None),
    ],
)
def test_weighted_sums_are_exact_in_factors(
    method: str, parameters: str, scale: float | None, models: list[Any], plan_of: Any, tensors_of: Any
) -> None:
    text = f"merge_method: {method}\nbase_model: base\nmodels: [a, b]\noutput: adapter\nparameters: {parameters}"
    if scale is None:  # a global weight averages the base in: it is no adapter
        with pytest.raises(RecipeError, match="base is a full model"):
            plan_of(text, *models)
        return
    tensor = tensors_of(plan_of(text, *models))[Q]
    assert (tensor.action, tensor.parameters) == ("mean", {"scale": scale})


def test_recipes_whose_result_is_not_an_adapter_are_refused(
    models: list[Any], model: Any, llama_tensors: Any, plan_of: Any
) -> None:
    with pytest.raises(RecipeError, match="ties does not give a low-rank delta"):
        plan_of("merge_method: ties\nbase_model: base\nmodels: [a, b]\noutput: adapter", *models)
    with pytest.raises(RecipeError, match="c is a full model"):
        plan_of(SWUDI.replace("a, b", "a, c"), *models, model("c", llama_tensors()))
    with pytest.raises(RecipeError, match="no weight that an adapter changes is merged"):
        plan_of(SWUDI + "rules: [{match: '*', action: keep_base}]", *models)


def test_it_takes_a_small_part_of_the_memory(model: Any, adapter: Any, llama_tensors: Any, plan_of: Any) -> None:
    base = model("base", llama_tensors(1, hidden=1024))
    experts = [adapter(name, factors(Q, (1024, 1024))) for name in "ab"]
    dense = plan_of(SWUDI.replace("output: adapter\n", ""), base, *experts)
    rows = {tensor.name: tensor for shard in dense.shards for tensor in shard.tensors}
    assert plan_of(SWUDI, base, *experts).peak_bytes < rows[Q].peak_bytes / 10


def test_embeddings_of_any_name_and_biases(model: Any, adapter: Any, plan_of: Any, tensors_of: Any) -> None:
    base = {
        "wte.weight": (20, 8),
        "h.0.q.weight": (8, 8),
        "h.0.q.bias": (8,),
        "h.0.ln.bias": (8,),
        "h.0.ln.weight": (8,),
    }
    names = {
        "wte.lora_embedding_A": (2, 20),
        "wte.lora_embedding_B": (8, 2),
        **{name.removeprefix("base_model.model."): shape for name, shape in factors("h.0.q.weight", (8, 8)).items()},
        "h.0.q.base_layer.bias": (8,),
    }
    models = [model("base", base), adapter("a", names), adapter("b", names)]
    plan = plan_of(SWUDI, *models)
    stored = {entry.name for tensor in tensors_of(plan).values() for entry in output_entries(tensor)}
    at = "base_model.model."
    assert {f"{at}wte.lora_embedding_A", f"{at}h.0.q.lora_B.weight", f"{at}h.0.q.base_layer.bias"} < stored
    assert config_of(plan)["bias"] == "lora_only" and config_of(plan)["modules_to_save"] is None
    with_norm = adapter("a", {**names, "h.0.ln.bias": (8,)})
    plan = plan_of(SWUDI, models[0], with_norm, models[2])
    assert config_of(plan)["bias"] == "all"
    assert set(tensors_of(plan)) == {"wte.weight", "h.0.q.weight", "h.0.q.bias", "h.0.ln.bias"}


def test_a_saved_module_is_written_with_all_its_tensors(
    model: Any, adapter: Any, plan_of: Any, tensors_of: Any
) -> None:
    base = {"q.weight": (8, 8), "head.weight": (3, 8), "head.bias": (3,)}
    names = {**factors("q.weight", (8, 8)), "head.weight": (3, 8)}
    models = [model("base", base), adapter("a", names), adapter("b", names)]
    found = tensors_of(plan_of(SWUDI, *models))
    assert {name: tensor.action for name, tensor in found.items() if "head" in name} == {
        "head.weight": "merge",
        "head.bias": "copy",
    }
    assert found["head.bias"].adapter.full == "base_model.model.head.bias"
    one_of_each = adapter("b", factors("head.weight", (3, 8)))
    plan = plan_of(SWUDI, models[0], models[1], one_of_each)
    assert config_of(plan)["modules_to_save"] == ["head"]
