"""Output tensors from slices: numbers of layers and positions of gradients as in mergekit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError

CONFIG = {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "model_type": "llama"}
STACK = """
merge_method: passthrough
slices:
  - sources: [{model: one, layer_range: [0, 3]}]
  - sources: [{model: two, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: 0.5}]}}]
"""


def up(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj.weight"


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EigenmergeError) as caught:
        call()
    assert isinstance(caught.value, RecipeError)
    return str(caught.value)


@pytest.fixture
def models(model: Any, llama_tensors: Any) -> list[Any]:
    return [model(name, llama_tensors(4), config=CONFIG) for name in ("base", "one", "two")]


def test_layers_are_stacked_and_renumbered(models: list[Any], plan_of: Any, tensors_of: Any) -> None:
    plan = plan_of(STACK, *models)
    found = tensors_of(plan)
    _, one, two = models
    sources = [found[up(layer)].experts[0].full for layer in range(6)]
    assert sources == [one.tensors[up(i)] for i in (0, 1, 2)] + [two.tensors[up(i)] for i in (1, 2, 3)]
    assert found["model.embed_tokens.weight"].experts[0].full == one.tensors["model.embed_tokens.weight"]
    assert found["model.norm.weight"].experts[0].full == two.tensors["model.norm.weight"]
    assert found["lm_head.weight"].experts[0].full == two.tensors["lm_head.weight"]
    assert up(6) not in found
    scales = [found[f"model.layers.{i}.self_attn.o_proj.weight"].experts[0].parameters["scale"] for i in range(6)]
    assert scales == [None, None, None, 0.5, 0.5, 0.5]


def test_config_json_has_the_new_number_of_layers(models: list[Any], plan_of: Any) -> None:
    files = {side.name: side.content for side in plan_of(STACK, *models).side_files}
    config = json.loads(files["config.json"])
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == ["a", "b", "c", "b", "c", "d"]
    assert config["model_type"] == "llama"


@pytest.mark.parametrize(
    ("config", "depths"),
    [
        ({"text_config": CONFIG, "vision_config": {"num_hidden_layers": 4}}, (None, 6, 4)),
        ({**CONFIG, "text_config": CONFIG, "vision_config": {"num_hidden_layers": 4}}, (6, 6, 4)),
        ({**CONFIG, "vision_config": {"num_hidden_layers": 4}}, (6, None, 4)),
    ],
)
def test_the_language_part_of_config_json_has_it_too(
    model: Any, llama_tensors: Any, plan_of: Any, config: dict[str, Any], depths: tuple[int | None, ...]
) -> None:
    named = [model(name, llama_tensors(4), config=config) for name in ("base", "one", "two")]
    files = {side.name: side.content for side in plan_of(STACK, *named).side_files}
    found = json.loads(files["config.json"])
    parts = (found, found.get("text_config", {}), found["vision_config"])
    assert tuple(part.get("num_hidden_layers") for part in parts) == depths
    text = found.get("text_config", found)
    assert text["layer_types"] == ["a", "b", "c", "b", "c", "d"]


def test_gradients_run_over_each_slice(models: list[Any], plan_of: Any, tensors_of: Any) -> None:
    text = """
merge_method: slerp
base_model: base
slices:
  - sources: [{model: base, layer_range: [0, 3]}, {model: one, layer_range: [1, 4]}]
    parameters: {t: [0, 1]}
  - sources: [{model: base, layer_range: [3, 4]}, {model: one, layer_range: [0, 1]}]
parameters: {t: [0.25, 0.75]}
"""
    found = tensors_of(plan_of(text, *models))
    assert [found[up(layer)].parameters["t"] for layer in range(4)] == [0, 0.5, 1, 0.75]
    assert found["model.embed_tokens.weight"].parameters["t"] == 0
    assert found["model.norm.weight"].parameters["t"] == 0.25
    base, one = models[0], models[1]
    assert found[up(2)].base == base.tensors[up(2)]
    assert found[up(2)].experts[0].full == one.tensors[up(3)]
    assert found[up(3)].experts[0].full == one.tensors[up(0)]
    assert len(found[up(2)].experts) == 1  # the base is no expert of its own


def test_a_filter_may_name_a_layer_of_the_source(models: list[Any], plan_of: Any, tensors_of: Any) -> None:
    text = """
merge_method: passthrough
slices:
  - sources: [{model: one, layer_range: [2, 4], parameters: {scale: [{filter: layers.3.mlp, value: 0.5}]}}]
"""
    found = tensors_of(plan_of(text, *models))
    assert [found[up(layer)].experts[0].parameters["scale"] for layer in (0, 1)] == [None, 0.5]


def test_task_vectors_of_shifted_layers(models: list[Any], plan_of: Any, tensors_of: Any) -> None:
    text = """
merge_method: swudi
base_model: base
slices:
  - sources: [{model: base, layer_range: [2, 4]}, {model: one, layer_range: [2, 4]}, {model: two, layer_range: [2, 4]}]
"""
    found = tensors_of(plan_of(text, *models))
    assert found[up(0)].base == models[0].tensors[up(2)]
    plain = tensors_of(plan_of("merge_method: swudi\nbase_model: base\nmodels: [one, two]", *models))
    assert found[up(0)].spectrum_key == plain[up(2)].spectrum_key  # the same layer, under another number


def test_a_deeper_model_may_give_its_last_layers(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    one, two = model("one", llama_tensors(2), config={"num_hidden_layers": 2}), model("two", llama_tensors(6))
    found = tensors_of(plan_of(STACK.replace("[0, 3]", "[0, 2]").replace("[1, 4]", "[4, 6]"), one, two))
    assert [found[up(layer)].experts[0].full for layer in (2, 3)] == [two.tensors[up(4)], two.tensors[up(5)]]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[0, 3]", "[0, 9]", "slices[0].sources[0].layer_range: is [0, 9], one has layers [0, 4]"),
        ("[0, 3]", "[3, 3]", "slices[0].sources[0].layer_range: is [3, 3]"),
        ("[0, 3]", "[-1, 3]", "layer_range: is [-1, 3]"),
        ("[1, 4], ", "[1, 4]}, {model: one, layer_range: [0, 1], ", "different numbers of layers"),
        ("[1, 4], ", "[1, 4]}, {model: one, layer_range: [1, 4], ", "passthrough takes at most 1 models; found 2"),
    ],
)
def test_invalid_slices_are_refused(old: str, new: str, says: str, models: list[Any], plan_of: Any) -> None:
    assert says in refused(lambda: plan_of(STACK.replace(old, new), *models))


def test_two_stacks_of_layers_cannot_be_sliced(model: Any, plan_of: Any) -> None:
    names = {f"{stack}.layers.{i}.w.weight": (4, 4) for stack in ("encoder", "decoder") for i in range(4)}
    message = refused(lambda: plan_of(STACK, model("one", names), model("two", names)))
    assert "found decoder.layers, encoder.layers" in message


def test_a_module_is_one_more_scope(models: list[Any], plan_of: Any, tensors_of: Any) -> None:
    text = """
merge_method: ties
base_model: base
modules:
  default:
    models: [{model: one, parameters: {density: 0.5}}, {model: two}]
    parameters: {density: 0.25, weight: 2}
parameters: {density: 0.125, weight: 3, normalize: false}
"""
    tensor = tensors_of(plan_of(text, *models))[up(0)]
    assert [(e.parameters["density"], e.parameters["weight"]) for e in tensor.experts] == [(0.5, 2), (0.25, 2)]
    assert tensor.parameters["normalize"] is False
