"""Plans from listings: the action of each tensor, and errors before weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import BudgetError, CheckpointError, EigenmergeError
from eigenmerge.core.numerics.registry import built_in_methods

SWUDI = "merge_method: swudi\nbase_model: base\n"
TIES = "merge_method: ties\nbase_model: base\n"
Q = "model.layers.0.self_attn.q_proj.weight"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_spectral_method_merges_matrices_and_averages_the_rest(
    model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    names = llama_tensors()
    plan = plan_of(SWUDI + "models: [a, b]", *(model(name, names) for name in ("base", "a", "b")))
    found = tensors_of(plan)
    assert set(found) == set(names)
    assert {found[name].action for name in names if "proj" in name} == {"merge"}
    assert {found[name].action for name in names if "proj" not in name} == {"mean"}
    assert found[Q].reason == "2-D weight"
    assert found["model.norm.weight"].reason == "1-D: mean delta"
    assert found["lm_head.weight"].reason == "lm_head: mean delta"
    assert found[Q].spectrum_key.startswith("spectra/")
    assert found["model.norm.weight"].spectrum_key is None
    assert len({tensor.spectrum_key for tensor in found.values()}) == 14 + 1
    assert plan.warnings == ()


def test_a_direct_method_merges_everything(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    plan = plan_of(TIES + "models: [a, b]", *(model(name, llama_tensors()) for name in ("base", "a", "b")))
    assert {tensor.action for tensor in tensors_of(plan).values()} == {"merge"}
    assert {tensor.method for tensor in tensors_of(plan).values()} == {"ties"}


class TestModelsThatDoNotFit:
    @pytest.mark.parametrize(
        "name", ["a\nb.weight", "../../etc/passwd", "/abs.weight", "x" * 1001, "", "a\\b", "\x1b[31m"]
    )
    def test_unsafe_tensor_names_are_refused(self, name: str, model: Any, plan_of: Any) -> None:
        models = [model("base", {name: (4, 4)}), model("a", {name: (4, 4)})]
        assert "is refused" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))


class TestTheBase:
    def test_linear_needs_no_base(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        names = {"w.weight": (4, 4), "ids": (3,)}
        models = [model(name, names, dtype={"ids": "I64"}) for name in ("a", "b")]
        found = tensors_of(plan_of("merge_method: linear\nmodels: [a, b]", *models))
        assert found["w.weight"].base is None
        assert found["ids"].base == models[0].tensors["ids"]


def test_identical_experts_are_a_warning(model: Any, plan_of: Any) -> None:
    names = {"w.weight": (4, 4)}
    models = [model("base", names), model("a", names, fingerprint="x"), model("b", names, fingerprint="x")]
    plan = plan_of(SWUDI + "models: [a, b]", *models)
    assert any("identical experts: a and b" in warning for warning in plan.warnings)
    same = model("c", names, fingerprint=models[0].fingerprint)
    plan = plan_of(SWUDI + "models: [c]", models[0], same)
    assert any("c has the same weights as the base" in warning for warning in plan.warnings)


def test_the_budget_names_the_tensor_and_both_numbers(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    models = [model(name, llama_tensors(vocabulary=8)) for name in ("base", "a")]
    message = refused(BudgetError, lambda: plan_of(SWUDI + "models: [a]\nmax_memory: 1kB", *models))
    assert message.startswith("tensor model.layers.0.mlp.down_proj.weight [8, 16] needs ")
    assert "max_memory is 1000" in message
    assert plan_of(SWUDI + "models: [a]\nmax_memory: 1kB", *models, max_memory=10**9).peak_bytes > 1000


@pytest.mark.parametrize("method", sorted(built_in_methods()))
def test_every_method_can_be_planned(
    method: str, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    chosen = built_in_methods()[method]
    count = chosen.max_experts - 1 if chosen.max_experts and chosen.max_experts > 1 else 1 if chosen.max_experts else 3
    needed = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.1}, "ram": {}}.get(method, {})
    experts = [f"e{index}" for index in range(count)]
    text = f"merge_method: {method}\nbase_model: base\nmodels: [{', '.join(experts)}]\nparameters: {json.dumps(needed)}"
    plan = plan_of(text, *(model(name, llama_tensors()) for name in ("base", *experts)))
    tensor = tensors_of(plan)[Q]
    assert (tensor.action, tensor.method) == ("merge", method)
    assert tensor.flops > 0
    assert tensor.peak_bytes > 3 * 4 * 8 * 8
    assert tensor.bytes_read >= (count + 1) * 4 * 8 * 8
    chosen.Parameters.model_validate(dict(tensor.parameters))  # what a worker does
    chosen.Expert.model_validate(dict(tensor.experts[0].parameters))


def test_a_thousand_experts(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    experts = [model(f"e{index}", llama_tensors()) for index in range(1000)]
    lines = "".join(f"  - model: e{i}\n    parameters: {{weight: {i}}}\n" for i in range(1000))
    plan = plan_of(TIES + "models:\n" + lines, model("base", llama_tensors()), *experts)
    found = tensors_of(plan)[Q]
    assert [expert.parameters["weight"] for expert in found.experts] == list(range(1000))
    assert len(plan.experts) == 1000
