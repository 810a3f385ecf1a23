"""`tokenizer_source: union`: the base's vocabulary extended by the experts' tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.planning.outputs.vocabulary.vocabulary_union import extend_tokenizer_json, unite_vocabularies

EMBED = "embed_tokens.weight"


def tokenizer_json(vocabulary: dict[str, int]) -> bytes:
    return json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": []}).encode()


def test_new_tokens_follow_expert_after_expert_in_the_order_of_their_rows(model: Any) -> None:
    base, a, b = (model(name, {EMBED: (count, 4)}) for name, count in (("base", 2), ("a", 4), ("b", 4)))
    vocabularies = [{"q": 3, "x": 0, "p": 2}, {"q": 2, "r": 3, "beyond": 4}]
    contents = {base.side_files["tokenizer.json"]: tokenizer_json({"x": 0, "y": 1})}
    union = unite_vocabularies(base, {"x": 0, "y": 1}, list(zip((a, b), vocabularies, strict=True)), contents)
    assert union.vocabulary == {"x": 0, "y": 1, "p": 2, "q": 3, "r": 4}  # `beyond` has no row in the embedding of b
    assert union.added == (("p", 2), ("q", 3), ("r", 4))
    written = extend_tokenizer_json(union.added, base, [a, b], contents)
    assert written is not None
    assert [entry["content"] for entry in json.loads(written)["added_tokens"]] == ["p", "q", "r"]


def test_adapters_and_unknown_vocabularies_add_nothing(model: Any, adapter: Any) -> None:
    base, unknown = model("base", {EMBED: (2, 4)}), model("a", {EMBED: (3, 4)})
    lora = adapter("b", {"base_model.model.w.lora_A.weight": (2, 4)})
    union = unite_vocabularies(base, {"x": 0}, [(unknown, None), (lora, {"new": 1})], {})
    assert (union.vocabulary, union.added) == ({"x": 0}, ())
    assert extend_tokenizer_json(union.added, base, [unknown, lora], {}) is None


def test_the_base_needs_a_vocabulary_and_a_tokenizer_json_to_extend(model: Any) -> None:
    base, expert = model("base", {EMBED: (1, 4)}), model("a", {EMBED: (2, 4)})
    for own in (None, {"x": 0}):
        with pytest.raises(RecipeError, match=r"union: base has no tokenizer\.json to extend; use base"):
            unite_vocabularies(base, own, [(expert, {"x": 0, "new": 1})], {})
