"""Tied weights: stored once, twice, or under another name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.listing import ModelListing
from eigenmerge.core.planning.inputs.names.token_matrices import ties_unstored_head, token_roles

TEXT = "merge_method: swudi\nbase_model: base\nmodels: [a]\n"
E, HEAD, BODY = "transformer.word_embeddings.weight", "lm_head.weight", {"transformer.h.0.dense.weight": (4, 4)}
STORED_ONCE = {E: (10, 4), **BODY}
STORED_TWICE = {**STORED_ONCE, HEAD: (10, 4)}
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}


def equal(listing: ModelListing, **names: str) -> ModelListing:
    return replace(listing, equal_names={HEAD: E} | names)


@pytest.mark.parametrize(
    ("name", "rows", "more"),
    [
        ("proj_out.weight", 10, {"model.decoder.embed_tokens.weight": (10, 4)}),
        ("generator_lm_head.weight", 10, {"electra.embeddings.word_embeddings.weight": (10, 4)}),
        ("decoder.weight", 10, {"model.embeddings.tok_embeddings.weight": (10, 4)}),
        ("predictions.decoder.weight", 10, {"albert.embeddings.word_embeddings.weight": (10, 4)}),
        ("transformer.output_layer.weight", 10, {"transformer.embedding.word_embeddings.weight": (10, 4)}),
        ("output.weight", 10, {"model.tok_embeddings.weight": (10, 4)}),
        ("embed_out.weight", 10, {"gpt_neox.embed_in.weight": (10, 4)}),
        ("lm_head.decoder.weight", 10, {"roberta.embeddings.word_embeddings.weight": (10, 4)}),
    ],
)
def test_heads_are_found_by_their_shape(model: Any, name: str, rows: int, more: Mapping[str, Any]) -> None:
    others = {"pooler.dense.weight": (4, 4), "score.weight": (2, 4), "wpe.weight": (9, 4), "x.h.0.up.weight": (10, 4)}
    listing = model("a", {name: (rows, 4), **more, **others})
    assert token_roles(listing.tensors, None) == {name: "lm_head"} | dict.fromkeys(more, "embedding")
    assert token_roles(model("b", {"z.weight": (7, 4)}).tensors, {"text_config": {"vocab_size": 7}}) == {
        "z.weight": "lm_head"
    }


def test_a_head_under_any_name_is_treated_as_one(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"generator_lm_head.weight": (10, 4), "electra.word_embeddings.weight": (10, 4)}
    plan = plan_of(TEXT + "lm_head: base\n", model("base", names), model("a", names))
    assert tensors_of(plan)["generator_lm_head.weight"].reason == "lm_head: base kept"


def test_which_models_tie_a_head_that_they_do_not_store() -> None:
    assert ties_unstored_head({"architectures": ["GPT2LMHeadModel"]})
    assert ties_unstored_head({"architectures": ["XForConditionalGeneration"], "text_config": TIED})
    assert ties_unstored_head(TIED)
    assert not ties_unstored_head({"architectures": ["BertModel"]} | TIED)
    assert not ties_unstored_head({"architectures": ["LlamaForCausalLM"]} | UNTIED)
    assert not ties_unstored_head(None)


@pytest.mark.parametrize("method", ["swudi", "dare_ties"])
@pytest.mark.parametrize("config", [None, TIED])
def test_an_alias_that_only_the_base_stores_follows_the_embedding(
    model: Any, plan_of: Any, tensors_of: Any, config: Any, method: str
) -> None:
    base = equal(model("base", STORED_TWICE, config=config))
    text = f"merge_method: {method}\nbase_model: base\nmodels: [a]\nlm_head: base\n"
    tensors = tensors_of(plan_of(text, base, model("a", STORED_ONCE, config=config)))
    assert replace(tensors[HEAD], name=E, reason=tensors[E].reason, tied_to=None) == tensors[E]
    assert (tensors[HEAD].tied_to, tensors[HEAD].reason) == (E, f"tied to {E}")


def test_experts_that_store_both(model: Any, plan_of: Any, tensors_of: Any) -> None:
    for base in (equal(model("base", STORED_TWICE)), model("base", STORED_ONCE, config=TIED)):
        plan = plan_of(TEXT, base, equal(model("a", STORED_TWICE)))
        assert plan.experts[0].arrival.num_left_out == 0
        with pytest.raises(CheckpointError, match=r"lm_head.weight: a stores other values .* base ties the two"):
            plan_of(TEXT, base, model("a", STORED_TWICE))
    untied = equal(model("base", STORED_TWICE, config=UNTIED))
    assert tensors_of(plan_of(TEXT, untied, model("a", STORED_TWICE)))[HEAD].tied_to is None


def test_a_tied_expert_on_an_untied_base(model: Any, plan_of: Any, tensors_of: Any) -> None:
    base, expert = model("base", STORED_TWICE, config=UNTIED), model("a", STORED_ONCE, config=TIED)
    with pytest.raises(CheckpointError, match=r"lm_head.weight: a does not store it and ties .*missing: base"):
        plan_of(TEXT, base, expert)
    assert tensors_of(plan_of(TEXT + "missing: base\n", base, expert))[HEAD].action == "copy"
    headless = model("a", STORED_ONCE | {"score.weight": (2, 4)}, config=UNTIED)
    assert tensors_of(plan_of(TEXT, base, headless))[HEAD].action == "copy"


@pytest.mark.parametrize("stored", [("shared.weight",), ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")])
def test_one_weight_under_another_name(model: Any, plan_of: Any, tensors_of: Any, stored: tuple[str, ...]) -> None:
    base = model("base", {"lm_head.weight": (10, 4), **BODY}, config={"architectures": ["T5ForConditionalGeneration"]})
    expert = model("a", dict.fromkeys(stored, (10, 4)) | BODY)
    expert = replace(expert, equal_names=dict.fromkeys(stored[1:], stored[0]))
    source = tensors_of(plan_of(TEXT, base, expert))["lm_head.weight"].experts[0].full
    assert source in [expert.tensors[name] for name in stored]


def test_tied_biases(model: Any, plan_of: Any, tensors_of: Any) -> None:
    bias, other = "cls.predictions.bias", "cls.predictions.decoder.bias"
    names = {"bert.word_embeddings.weight": (10, 4), bias: (10,), other: (10,)}
    base = replace(model("base", names), equal_names={other: bias})
    for left in (bias, other):
        expert = model("a", {name: shape for name, shape in names.items() if name != left}, config=UNTIED)
        tensors = tensors_of(plan_of(TEXT, base, expert))
        kept = other if left == bias else bias
        assert tensors[bias].experts[0].full == tensors[other].experts[0].full == expert.tensors[kept]


def saved(*modules: str) -> dict[str, tuple[int, ...]]:
    return {f"base_model.model.{module}.weight": (10, 4) for module in modules}


WTE = "transformer.word_embeddings"
LORA_E = {f"base_model.model.{WTE}.lora_embedding_A": (2, 10), f"base_model.model.{WTE}.lora_embedding_B": (4, 2)}
LORA_HEAD = {"base_model.model.lm_head.lora_A.weight": (2, 4), "base_model.model.lm_head.lora_B.weight": (10, 2)}


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize(
    ("factors", "config"),
    [
        (LORA_E, {}),
        (LORA_HEAD, {}),
        (LORA_E | LORA_HEAD, {}),
        (saved("lm_head"), {"modules_to_save": ["lm_head"]}),
        (saved(WTE), {"modules_to_save": ["word_embeddings"]}),
        (saved(WTE, "lm_head"), {"modules_to_save": ["word_embeddings", "lm_head"]}),
    ],
)
def test_an_adapter_on_one_of_two_tied_weights(
    model: Any, adapter: Any, plan_of: Any, twice: bool, factors: Any, config: Any
) -> None:
    base = equal(model("base", STORED_TWICE, config=TIED)) if twice else model("base", STORED_ONCE, config=TIED)
    body = {f"base_model.model.transformer.h.0.dense.lora_{k}.weight": s for k, s in (("A", (2, 4)), ("B", (4, 2)))}
    part = adapter("a", factors | body, config)
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings: false"):
        plan_of(TEXT, base, part)


@pytest.mark.parametrize("twice", [True, False])
def test_new_rows_of_tied_embeddings_that_an_adapter_stores(
    model: Any, adapter: Any, plan_of: Any, tensors_of: Any, twice: bool
) -> None:
    base = equal(model("base", STORED_TWICE, config=TIED)) if twice else model("base", STORED_ONCE, config=TIED)
    part = adapter("a", saved(WTE, "lm_head"))
    assert part.adapter is not None
    same = {"base_model.model.lm_head.weight": f"base_model.model.{WTE}.weight"}
    part = replace(part, adapter=replace(part.adapter, equal_names=same))
    tensors = tensors_of(plan_of(TEXT, base, part))
    assert tensors[E].experts[0].full == part.adapter.tensors[f"base_model.model.{WTE}.weight"]
    if twice:
        assert tensors[HEAD].tied_to == E


def test_an_adapter_as_output_holds_changes_of_one_of_two(model: Any, adapter: Any, plan_of: Any) -> None:
    text = TEXT.replace("swudi", "linear") + "output: {format: adapter}\n"
    assert plan_of(text, model("base", STORED_ONCE, config=TIED), adapter("a", LORA_E)).num_tensors > 0
