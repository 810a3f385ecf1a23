"""The plan of one tensor: dtype, parameters, experts and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError

SWUDI = "merge_method: swudi\nbase_model: base\n"
TIES = "merge_method: ties\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_tensor_that_no_expert_has_is_copied_from_the_base(
    model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    base = {**llama_tensors(), "score.weight": (2, 8)}
    plan = plan_of(SWUDI + "models: [a]", model("base", base), model("a", llama_tensors()))
    assert tensors_of(plan)["score.weight"].action == "copy"
    assert "tensors in no expert stay the base's: 1, the first score.weight" in plan.warnings


def test_output_dtypes(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"w.weight": (4, 4), "n.weight": (4,), "ids": (2,), "f.weight": (4, 4)}
    stored = {"w.weight": "BF16", "n.weight": "F32", "ids": "I64", "f.weight": "F8_E4M3"}
    models = [model(name, names, dtype=stored) for name in ("base", "a")]

    def dtypes(extra: str) -> list[str]:
        found = tensors_of(plan_of(SWUDI + f"models: [a]\n{extra}", *models))
        return [found[name].out_dtype for name in names]

    assert dtypes("") == ["BF16", "F32", "I64", "BF16"]
    assert dtypes("dtype: float16") == ["F16", "F16", "I64", "F16"]
    assert dtypes("dtype: float16\nout_dtype: float32") == ["F32", "F32", "I64", "F32"]


def test_gradients_and_filters_reach_the_tensors(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    text = TIES + (
        "models:\n"
        "  - model: a\n"
        "    parameters: {weight: [{filter: mlp, value: [0, 1]}, {value: 0.25}]}\n"
        "  - model: b\n"
        "parameters: {weight: 0.5, density: [1, 0.5]}\n"
    )
    found = tensors_of(plan_of(text, *(model(name, llama_tensors(5)) for name in ("base", "a", "b"))))
    weights = [
        [e.parameters["weight"] for e in found[f"model.layers.{i}.mlp.up_proj.weight"].experts] for i in range(5)
    ]
    assert weights == [[0, 0.5], [0.25, 0.5], [0.5, 0.5], [0.75, 0.5], [1, 0.5]]
    norm = found["model.layers.1.input_layernorm.weight"].experts
    assert [expert.parameters["weight"] for expert in norm] == [0.25, 0.5]
    assert [expert.parameters["density"] for expert in norm] == [0.875, 0.875]
    assert [expert.parameters["density"] for expert in found["model.norm.weight"].experts] == [1, 1]


def test_a_required_parameter(model: Any, plan_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    text = "merge_method: slerp\nbase_model: base\nmodels: [a]"
    assert "t: at tensor w.weight: Field required" in refused(RecipeError, lambda: plan_of(text, *models))


def test_experts_are_ordered_by_fingerprint_unless_the_order_matters(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"w.weight": (4, 4)}
    models = [model(name, names, fingerprint=mark) for name, mark in (("base", "0"), ("a", "9"), ("b", "5"))]

    def order(method: str, experts: str) -> list[str]:
        plan = plan_of(f"merge_method: {method}\nbase_model: base\nmodels: [{experts}]", *models)
        return [plan.experts[expert.expert].name for expert in tensors_of(plan)["w.weight"].experts]

    assert order("swudi", "a, b") == order("swudi", "b, a") == ["b", "a"]
    assert order("ties", "a, b") == ["a", "b"]
    assert order("ties", "b, a") == ["b", "a"]


def test_means_take_only_the_weight_of_each_expert(model: Any, plan_of: Any, tensors_of: Any) -> None:
    text = TIES + "models: [{model: a, parameters: {weight: 3, density: 0.5}}]\nrules: [{match: '*', action: mean}]"
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    tensor = tensors_of(plan_of(text, *models))["w.weight"]
    assert (tensor.action, tensor.method, tensor.parameters) == ("mean", None, {"scale": 1.0})
    assert tensor.experts[0].parameters == {"weight": 3}


def test_a_copy_holds_the_stored_and_the_cast_bytes(model: Any, plan_of: Any, tensors_of: Any) -> None:
    text = SWUDI + "models: [a]\nvectors: base\n"
    models = [model(name, {"w.weight": (4, 4), "n.weight": (4,)}, dtype="BF16") for name in ("base", "a")]
    plain = tensors_of(plan_of(text, *models))["n.weight"]
    cast = tensors_of(plan_of(text + "dtype: float32", *models))["n.weight"]
    assert (plain.bytes_read, plain.peak_bytes) == (8, 8 + 8)
    assert (cast.bytes_read, cast.peak_bytes) == (8, 8 + 16 + 16)  # and the tensor in the arithmetic dtype


def test_tensors_share_the_mapping_of_equal_parameters(
    model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    found = tensors_of(plan_of(SWUDI + "models: [a]", *(model(name, llama_tensors(3)) for name in ("base", "a"))))
    merged = [tensor for tensor in found.values() if tensor.action == "merge"]
    assert len(merged) == 3 * 7
    assert len({id(tensor.parameters) for tensor in merged}) == 1


def test_an_expert_of_weight_zero_is_left_out(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, llama_tensors(3)) for name in ("base", "a", "b")]
    text = "models:\n  - model: a\n    parameters: {weight: [0, 0.5, 1]}\n  - model: b\n"
    found = tensors_of(plan_of("merge_method: tsv_m\nbase_model: base\n" + text, *models))
    counts = [len(found[f"model.layers.{index}.mlp.up_proj.weight"].experts) for index in range(3)]
    assert counts == [1, 2, 2]
    assert len(found["model.layers.0.input_layernorm.weight"].experts) == 1

    both = "models:\n" + "".join(f"  - model: {name}\n    parameters: {{weight: 0}}\n" for name in "ab")
    found = tensors_of(plan_of("merge_method: tsv_m\nbase_model: base\n" + both, *models))
    assert {tensor.action for tensor in found.values()} == {"copy"}


def test_filters_that_amplify_rounding_are_planned_in_float64(
    model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    models = [model(name, llama_tensors()) for name in ("base", "a", "b")]

    def arithmetic(text: str) -> Any:
        plan = plan_of(f"base_model: base\nmodels: [a, b]\n{text}", *models)
        found = tensors_of(plan)["model.layers.0.mlp.up_proj.weight"].arithmetic
        assert any("merged in float64" in warning for warning in plan.warnings) == (found is not None)
        return found

    assert arithmetic("merge_method: wudi_pinv") == "float64"
    assert arithmetic("merge_method: swudi\nparameters: {exp_time: 1000000}") == "float64"
    assert arithmetic("merge_method: swudi_a\nparameters: {rank_rule: none}") == "float64"
    assert arithmetic("merge_method: swudi_a") is None
    assert arithmetic("merge_method: swudi\nparameters: {exp_time: 1800, rank_ratio: 0.65}") is None
