"""Different vocabularies: which rows correspond, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, RecipeError, ShapeError
from eigenmerge.core.planning.inputs.tokenizers import read_vocabulary
from eigenmerge.core.planning.outputs.vocabulary.fit_vocabulary import tokenizer_files_needed
from eigenmerge.core.steps.read_recipe import read_recipe

TIES = "merge_method: ties\nbase_model: base\nmodels: [a]\n"
EMBED = "embed_tokens.weight"


def tokenizer(tokens: list[str], added: list[str] = ()) -> bytes:  # type: ignore[assignment]
    entries = [{"id": len(tokens) + i, "content": token, "special": True} for i, token in enumerate(added)]
    vocabulary = {token: row for row, token in enumerate(tokens)}
    return json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": entries}).encode()


def contents(**by_model: bytes) -> dict[str, bytes]:
    return {f"/models/{name}/tokenizer.json": content for name, content in by_model.items()}


def pair(model: Any, base_rows: int, rows: int) -> list[Any]:
    return [
        model(
            name,
            {EMBED: (count, 4), "layers.0.w.weight": (4, 4), "lm_head.weight": (count, 4)},
            config={"vocab_size": count},
        )
        for name, count in (("base", base_rows), ("a", rows))
    ]


def test_appended_rows_are_cut_off_with_a_warning(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = pair(model, 3, 5)
    known = contents(base=tokenizer(["x", "y", "z"]), a=tokenizer(["x", "y", "z"], ["<new>", "<pad>"]))
    plan = plan_of(TIES, *models, side_file_contents=known)
    expert = tensors_of(plan)[EMBED].experts[0]
    stored = models[1].tensors[EMBED]
    assert (expert.full.start, expert.full.stop, expert.full.shape) == (stored.start, stored.start + 3 * 4 * 4, (3, 4))
    assert expert.rows is None
    assert any("a has 5 rows in its vocabulary, the base 3: 2 are left out" in warning for warning in plan.warnings)


def test_missing_rows_are_taken_from_the_base(model: Any, plan_of: Any, tensors_of: Any) -> None:
    known = contents(base=tokenizer(["x", "y", "z"]), a=tokenizer(["x", "y"]))
    plan = plan_of(TIES, *pair(model, 3, 2), side_file_contents=known)
    expert = tensors_of(plan)[EMBED].experts[0]
    assert expert.full.shape == (2, 4)
    assert expert.rows == ((0, 0, 2),)
    assert tensors_of(plan)[EMBED].shape == (3, 4)


def test_different_rows_without_matching_tokenizers_are_refused(model: Any, plan_of: Any) -> None:
    models = pair(model, 3, 5)
    with pytest.raises(
        ShapeError, match=r"embed_tokens.weight: a has 5 rows, the base has 3, and without tokenizer files.*base"
    ):
        plan_of(TIES, *models)
    known = contents(base=tokenizer(["x", "y", "z"]), a=tokenizer(["y", "x", "z", "q", "r"]))
    with pytest.raises(
        ShapeError, match=r"their tokenizers differ \(token 'x' is row 0 and 1\); set `tokenizer_source: base`"
    ):
        plan_of(TIES, *models, side_file_contents=known)


def test_base_without_tokenizers_takes_the_first_rows(model: Any, plan_of: Any, tensors_of: Any) -> None:
    plan = plan_of(TIES + "tokenizer_source: base", *pair(model, 3, 5))
    assert tensors_of(plan)[EMBED].experts[0].full.shape == (3, 4)
    assert any("vocabulary unknown" in warning for warning in plan.warnings)


def test_base_matches_rows_by_token(model: Any, plan_of: Any, tensors_of: Any) -> None:
    known = contents(base=tokenizer(["x", "y", "z"]), a=tokenizer(["y", "z", "x"]))
    found = tensors_of(plan_of(TIES + "tokenizer_source: base", *pair(model, 3, 3), side_file_contents=known))
    assert found[EMBED].experts[0].rows == ((0, 2, 1), (1, 0, 2))
    assert found["lm_head.weight"].experts[0].rows == ((0, 2, 1), (1, 0, 2))
    assert found["layers.0.w.weight"].experts[0].rows is None
    assert found[EMBED].base_rows is None


def test_equal_vocabularies_leave_everything_in_place(model: Any, plan_of: Any, tensors_of: Any) -> None:
    known = contents(base=tokenizer(["x", "y"]), a=tokenizer(["x", "y"]))
    models = pair(model, 4, 4)  # two rows of padding
    plain = plan_of(TIES, *models)
    for source in ("base", "union", "a"):
        plan = plan_of(TIES + f"tokenizer_source: {source}", *models, side_file_contents=known, tokenizer=models[1])
        tensor = tensors_of(plan)[EMBED]
        assert (tensor.base_rows, tensor.experts[0].rows) == (None, None)
        assert [shard.part_key for shard in plan.shards] == [shard.part_key for shard in plain.shards]


def test_union_appends_new_tokens(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = pair(model, 3, 5)
    known = contents(base=tokenizer(["x", "y", "z"]), a=tokenizer(["y", "x", "z", "q"], ["<new>"]))
    plan = plan_of(TIES + "tokenizer_source: union", *models, side_file_contents=known)
    tensor = tensors_of(plan)[EMBED]
    assert tensor.shape == (5, 4)
    assert tensor.base_rows == ((0, 0, 3),)
    assert tensor.experts[0].rows == ((0, 1, 1), (1, 0, 1), (2, 2, 3))
    files = {side.name: side for side in plan.side_files}
    assert json.loads(files["config.json"].content)["vocab_size"] == 5
    added = json.loads(files["tokenizer.json"].content)["added_tokens"]
    assert [(entry["id"], entry["content"], entry["special"]) for entry in added] == [
        (3, "q", False),
        (4, "<new>", True),
    ]


def test_union_uses_the_padding_of_the_base_first(model: Any, plan_of: Any, tensors_of: Any) -> None:
    known = contents(base=tokenizer(["x", "y"]), a=tokenizer(["x", "y", "q"]))
    tensor = tensors_of(plan_of(TIES + "tokenizer_source: union", *pair(model, 8, 3), side_file_contents=known))[EMBED]
    assert tensor.shape == (8, 4)
    assert tensor.base_rows == ((0, 0, 2), (3, 3, 5))
    assert tensor.experts[0].rows == ((0, 0, 3),)


def test_tokens_without_a_row_are_not_added(model: Any, adapter: Any, plan_of: Any, tensors_of: Any) -> None:
    known = contents(base=tokenizer(["x", "y"]), a=tokenizer(["x", "y", "q", "beyond"]))
    plan = plan_of(TIES + "tokenizer_source: union", *pair(model, 2, 3), side_file_contents=known)
    assert tensors_of(plan)[EMBED].shape == (3, 4)
    lora = adapter("a", {"layers.0.w.lora_A.weight": (2, 4), "layers.0.w.lora_B.weight": (4, 2)})
    lora = replace(lora, side_files={"tokenizer.json": "/models/a/tokenizer.json"})
    plan = plan_of(TIES + "tokenizer_source: union", pair(model, 2, 2)[0], lora, side_file_contents=known)
    assert tensors_of(plan)[EMBED].shape == (2, 4)


def test_a_kept_embedding_gets_the_new_rows_only(model: Any, plan_of: Any, tensors_of: Any) -> None:
    known = contents(base=tokenizer(["x"]), a=tokenizer(["x", "q"]))
    text = "merge_method: swudi\nbase_model: base\nmodels: [a]\nembeddings: base\ntokenizer_source: union"
    tensor = tensors_of(plan_of(text, *pair(model, 1, 2), side_file_contents=known))[EMBED]
    assert (tensor.action, tensor.parameters) == ("mean", {"scale": 0.0})
    assert tensor.shape == (2, 4)


def test_the_tokenizer_of_a_named_model(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = pair(model, 3, 3)
    other = model("other", {"w": (1,)})
    known = contents(
        base=tokenizer(["x", "y", "z"]), a=tokenizer(["x", "z", "y"]), other=tokenizer(["z", "new", "x", "y"])
    )
    plan = plan_of(TIES + "tokenizer_source: other", *models, side_file_contents=known, tokenizer=other)
    tensor = tensors_of(plan)[EMBED]
    assert tensor.shape == (4, 4)
    assert tensor.base_rows == ((0, 2, 1), (2, 0, 2))
    assert tensor.experts[0].rows == ((0, 1, 1), (2, 0, 1), (3, 2, 1))
    assert {side.name: side.source_uri for side in plan.side_files}["tokenizer.json"] == "/models/other/tokenizer.json"
    with pytest.raises(RecipeError, match=r"other has no tokenizer\.json"):
        plan_of(TIES + "tokenizer_source: other", *models, tokenizer=other)


def test_union_needs_a_tokenizer_to_extend(model: Any, plan_of: Any) -> None:
    with pytest.raises(RecipeError, match=r"base has no tokenizer\.json to extend; use base"):
        plan_of(TIES + "tokenizer_source: union", *pair(model, 3, 5))


def test_which_files_are_needed(model: Any) -> None:
    models = pair(model, 3, 5)
    recipe = read_recipe(TIES + "\n\n")
    both = ["/models/base/tokenizer.json", "/models/a/tokenizer.json"]
    assert tokenizer_files_needed(recipe, models[0], models[1:]) == both
    assert tokenizer_files_needed(recipe, models[0], pair(model, 3, 3)[1:]) == []
    explicit = read_recipe(TIES + "tokenizer_source: union\n\n")
    assert tokenizer_files_needed(explicit, *[pair(model, 3, 3)[0], pair(model, 3, 3)[1:]]) == both


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"tokenizer.json": tokenizer(["a", "b"], ["c"])}, {"a": 0, "b": 1, "c": 2}),
        ({"tokenizer.json": b'{"model": {"vocab": [["a", 0.1], ["b", 0.2]]}}'}, {"a": 0, "b": 1}),
        ({"vocab.json": b'{"a": 0}', "added_tokens.json": b'{"b": 1}'}, {"a": 0, "b": 1}),
        ({"vocab.txt": b"a\nb\n"}, {"a": 0, "b": 1}),
        ({"tokenizer.model": b"\x00"}, None),
    ],
)
def test_vocabularies(files: dict[str, bytes], found: dict[str, int] | None, model: Any) -> None:
    listing = model("m", {}, side_files=tuple(files))
    assert read_vocabulary(listing, {f"/models/m/{name}": content for name, content in files.items()}) == found
    assert read_vocabulary(listing, {}) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"model": 3}',
        b'{"model": {"vocab": {"a": "x"}}}',
        b'{"model": {"vocab": {"a": -1}}}',
        b"[" * 99999,
    ],
)
def test_a_damaged_tokenizer_is_named(content: bytes, model: Any) -> None:
    with pytest.raises(CheckpointError, match=r"/models/m/tokenizer\.json"):
        read_vocabulary(model("m", {}), {"/models/m/tokenizer.json": content})


BIAS = "final_logits_bias"


def bart(model: Any, base_rows: int, rows: int) -> list[Any]:
    """Models with a bias (1, V), as BART and Marian have it."""
    return [
        model(name, {"shared.weight": (count, 4), "layers.0.w.weight": (4, 4), BIAS: (1, count)})
        for name, count in (("base", base_rows), ("a", rows))
    ]


def test_columns_of_appended_tokens_are_cut_off_too(model: Any, plan_of: Any, tensors_of: Any) -> None:
    known = contents(base=tokenizer(["x", "y", "z"]), a=tokenizer(["x", "y", "z"], ["<new>"]))
    for source in ("", "tokenizer_source: base\n"):
        plan = plan_of(TIES + source, *bart(model, 3, 4), side_file_contents=known)
        assert tensors_of(plan)[BIAS].shape == (1, 3) == tensors_of(plan)[BIAS].experts[0].full.shape


def test_columns_that_would_have_to_move_are_refused(model: Any, plan_of: Any, tensors_of: Any) -> None:
    base, other = tokenizer(["x", "y", "z"]), tokenizer(["y", "x", "z"])
    with pytest.raises(ShapeError, match=r"final_logits_bias: a has shape \[1, 3\], the base has \[1, 3\]"):
        plan_of(TIES + "tokenizer_source: base\n", *bart(model, 3, 3), side_file_contents=contents(base=base, a=other))
    with pytest.raises(RecipeError, match=r"final_logits_bias: has one column for each of 3 tokens"):
        known = contents(base=base, a=tokenizer(["x", "y", "z"], ["<new>"]))
        plan_of(TIES + "tokenizer_source: union\n", *bart(model, 3, 4), side_file_contents=known)
    plan = plan_of(TIES, *bart(model, 3, 3))
    assert tensors_of(plan)[BIAS].experts[0].full.shape == (1, 3)
