"""One input checkpoint under the names of the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError

SWUDI = "merge_method: swudi\nbase_model: base\n"
Q = "model.layers.0.self_attn.q_proj.weight"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_tensor_that_the_base_lacks_is_left_out(
    model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    more = {**llama_tensors(), "score.weight": (2, 8)}
    plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), model("a", more))
    assert "score.weight" not in tensors_of(plan)
    assert any("left out: score.weight" in warning for warning in plan.warnings)


def test_a_missing_lm_head_is_the_embedding(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    tied = model("a", llama_tensors(lm_head=False), config={"tie_word_embeddings": True})
    plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), tied)
    head = tensors_of(plan)["lm_head.weight"]
    assert head.experts[0].full == tied.tensors["model.embed_tokens.weight"]
    untied = replace(tied, config={"tie_word_embeddings": False})
    plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), untied)
    assert tensors_of(plan)["lm_head.weight"].action == "copy"


def test_prefixes(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    bare = model("a", llama_tensors(prefix="", lm_head=False))
    plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors(lm_head=False)), bare)
    assert tensors_of(plan)[Q].experts[0].full == bare.tensors[Q.removeprefix("model.")]
    assert any("names matched with prefix" in warning for warning in plan.warnings)


def test_nothing_in_it(model: Any, plan_of: Any) -> None:
    models = [model("base", {}), model("a", {})]
    assert "holds no tensors" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))


def test_an_adapter_as_base(model: Any, adapter: Any, plan_of: Any) -> None:
    models = [adapter("base", {"x.lora_A.weight": (2, 4)}), model("a", {"w.weight": (4, 4)})]
    assert "is a LoRA adapter" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))
