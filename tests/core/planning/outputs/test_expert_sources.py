"""The stored tensor of each expert: shapes that do not fit and tensors that are missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError, ShapeError

SWUDI = "merge_method: swudi\nbase_model: base\n"
Q = "model.layers.0.self_attn.q_proj.weight"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_another_shape(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    message = refused(
        ShapeError,
        lambda: plan_of(
            SWUDI + "models: [a, b]",
            model("base", llama_tensors()),
            model("a", llama_tensors()),
            model("b", llama_tensors(kv=4)),
        ),
    )
    assert message.startswith("model.layers.0.self_attn.k_proj.weight: b has shape [4, 8], the base has [8, 8]")


def test_the_error_for_a_transposed_weight_says_so(model: Any, plan_of: Any) -> None:
    models = [model("base", {"w.weight": (3, 5)}), model("a", {"w.weight": (5, 3)})]
    assert "it is stored transposed" in refused(ShapeError, lambda: plan_of(SWUDI + "models: [a]", *models))


def test_a_tensor_that_some_experts_lack(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    less = {name: shape for name, shape in llama_tensors().items() if name != Q}
    models = [model("base", llama_tensors()), model("a", llama_tensors()), model("b", less)]
    message = refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a, b]", *models))
    assert message.startswith(f"{Q}: b does not have it")
    assert "missing: base" in message
    tensor = tensors_of(plan_of(SWUDI + "models: [a, b]\nmissing: base", *models))[Q]
    assert sorted(expert.full is None for expert in tensor.experts) == [False, True]
    text = "merge_method: linear\nmodels: [a, b]\nmissing: base"
    message = refused(CheckpointError, lambda: plan_of(text, *models))
    assert "b does not have it, other models do; give base_model" in message
    rule = f"rules: [{{match: '{Q}', action: keep_base}}]"
    assert tensors_of(plan_of(SWUDI + f"models: [a, b]\n{rule}", *models))[Q].action == "copy"


def test_adapters_cannot_follow_another_vocabulary(model: Any, adapter: Any, plan_of: Any) -> None:
    at = "base_model.model.embed_tokens"
    factors = {f"{at}.lora_embedding_A": (2, 3), f"{at}.lora_embedding_B": (4, 2)}
    base, other = model("base", {"embed_tokens.weight": (3, 4)}), model("b", {"embed_tokens.weight": (4, 4)})
    contents = {
        listing.side_files["tokenizer.json"]: json.dumps({"model": {"vocab": vocabulary}}).encode()
        for listing, vocabulary in ((base, {"x": 0, "y": 1, "z": 2}), (other, {"x": 0, "y": 1, "z": 2, "new": 3}))
    }
    text = SWUDI + "models: [a, b]\ntokenizer_source: union"
    message = refused(
        CheckpointError, lambda: plan_of(text, base, adapter("a", factors), other, side_file_contents=contents)
    )
    assert message.startswith("embed_tokens.weight: a adapts it and tokenizer_source changes its rows")


def test_an_integer_tensor_where_the_base_has_floats(model: Any, plan_of: Any) -> None:
    names = {"w.weight": (4, 4), "w.table": (4, 4)}
    models = [model("base", names), model("a", names, dtype={"w.table": "I8"})]
    message = refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))
    assert message == ("w.table: a stores it as I8, expected a float as in the base (F32); give the unquantized model")
