"""One input checkpoint under the names of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError, RecipeError, ShapeError
from eigenmerge.core.listing import ModelListing
from eigenmerge.core.planning.inputs.checkpoint import UNCHANGED, Checkpoint, Contribution, MatchCache, summarize
from eigenmerge.core.planning.inputs.layouts.layout import Layout

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


def test_prefixes(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    bare = model("a", llama_tensors(prefix="", lm_head=False))
    plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors(lm_head=False)), bare)
    assert tensors_of(plan)[Q].experts[0].full == bare.tensors[Q.removeprefix("model.")]
    assert any("names matched with prefix" in warning for warning in plan.warnings)


def test_a_model_without_tensors_is_refused(model: Any, plan_of: Any) -> None:
    models = [model("base", {}), model("a", {})]
    assert "holds no tensors" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))


def test_an_adapter_as_base(model: Any, adapter: Any, plan_of: Any) -> None:
    models = [adapter("base", {"x.lora_A.weight": (2, 4)}), model("a", {"w.weight": (4, 4)})]
    assert "is a LoRA adapter" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))


def shapes(listing: ModelListing) -> dict[str, tuple[int, ...]]:
    return {name: source.shape for name, source in listing.tensors.items()}


def test_contributions_of_a_full_model_and_of_adapters(model: Any, adapter: Any) -> None:
    base = model("base", {"l.0.w.weight": (4, 6), "l.0.v.weight": (4, 6), "score.weight": (2, 4)})
    reference = base.tensors["l.0.w.weight"]
    full = Checkpoint(model("a", shapes(base)), Layout(shapes(base), None), base, MatchCache())
    whole = full.contribution("l.0.w.weight", reference)
    assert whole == Contribution(full.listing.tensors["l.0.w.weight"], None, f"{full.fingerprint}/l.0.w.weight")
    assert full.contribution("l.0.missing.weight", reference) is None

    at = "base_model.model.l.0.w"
    factors = {f"{at}.lora_A.weight": (2, 6), f"{at}.lora_B.weight": (4, 2), "base_model.model.score.weight": (2, 4)}
    lora = Checkpoint(adapter("b", factors), Layout(shapes(base), None), base, MatchCache())
    assert lora.on_base
    touched, untouched = lora.contribution("l.0.w.weight", reference), lora.contribution("l.0.v.weight", reference)
    assert touched is not None
    assert (touched.full, touched.identity) == (None, f"{lora.fingerprint}/lora/l.0.w.weight")
    assert touched.lora is not None
    assert touched.lora.scaling == 4 / 2
    assert untouched == Contribution(None, None, UNCHANGED)
    saved = lora.contribution("score.weight", base.tensors["score.weight"])
    assert saved is not None
    assert saved.full is not None
    assert saved.identity == f"{lora.fingerprint}/saved/score.weight"
    assert lora.adapter_names == {"l.0.w.weight": "l.0.w.weight", "score.weight": "score.weight"}


def test_an_adapter_on_another_model_adds_to_the_models_own_weights(model: Any, adapter: Any) -> None:
    base = model("base", {"w.weight": (4, 6)})
    part = adapter("b", {"base_model.model.w.lora_A.weight": (2, 6), "base_model.model.w.lora_B.weight": (4, 2)})
    other = model("other", {"w.weight": (4, 6)}, adapter=part.adapter)
    checkpoint = Checkpoint(other, Layout(shapes(base), None), base, MatchCache())
    found = checkpoint.contribution("w.weight", base.tensors["w.weight"])
    assert not checkpoint.on_base
    assert found is not None
    assert found.full == other.tensors["w.weight"]
    assert found.lora is not None


def test_an_adapter_that_does_not_fit_the_base_is_refused(model: Any, adapter: Any) -> None:
    base = model("base", {"w.weight": (4, 5)})
    part = adapter("b", {"base_model.model.w.lora_A.weight": (2, 6), "base_model.model.w.lora_B.weight": (4, 2)})
    with pytest.raises(ShapeError, match=r"w.weight: b adapts a weight of \[4, 6\], the base has \[4, 5\]"):
        Checkpoint(part, Layout(shapes(base), None), base, MatchCache())
    with pytest.raises(CheckpointError, match=r"b: adapter targets w.weight, which the base does not have"):
        Checkpoint(part, Layout({"layers.0.v.weight": (4, 6)}, None), base, MatchCache())
    with pytest.raises(RecipeError, match="b is a LoRA adapter; set base_model"):
        Checkpoint(part, Layout(shapes(base), None), None, MatchCache())


def test_names_are_matched_once_for_experts_with_equal_names(model: Any) -> None:
    cache, names = MatchCache(), {"w.weight": (4, 4)}
    first, second = (cache.match(names, model(name, names).tensors) for name in ("a", "b"))
    assert first is second
    assert cache.match(names, model("c", {"w.weight": (5, 4)}).tensors) is not first


def test_extra_names_are_those_that_no_output_uses(model: Any) -> None:
    base = model("base", {"layers.0.w": (2, 2)})
    listing = model("a", {"layers.0.w": (2, 2), "layers.1.w": (2, 2), "x": (1,)})
    expert = Checkpoint(listing, Layout(shapes(base), None), base, MatchCache())
    assert expert.extra_names() == ["layers.1.w", "x"]
    expert.contribution("layers.1.w", base.tensors["layers.0.w"])  # a slice may use a layer that the base lacks
    assert expert.extra_names() == ["x"]


def test_the_summary_counts_the_adapters_tensors(model: Any, adapter: Any) -> None:
    part = adapter("b", {"base_model.model.w.lora_A.weight": (2, 6), "base_model.model.w.lora_B.weight": (4, 2)})
    assert summarize(part).num_tensors == 2
    assert summarize(model("a", {"w": (4, 6)}, adapter=part.adapter)).num_tensors == 3
