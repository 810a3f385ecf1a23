"""Experts whose vocabularies differ from that of the base: rows are matched by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import CheckpointError, RecipeError

Pipeline = Callable[..., Any]
EMBED, HEAD, Q_PROJ = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"
HIDDEN = 8


def tokenizer(tokens: list[str]) -> str:
    vocabulary = {token: row for row, token in enumerate(tokens)}
    return json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": []})


def weights(tokens: list[str], value: float) -> dict[str, torch.Tensor]:
    """Return weights whose row of a token is value + 100 * its code point, so that the origin of a row can be seen."""
    rows = torch.tensor([[value + 100.0 * ord(token[0])] * HIDDEN for token in tokens])
    return {EMBED: rows, HEAD: -rows, Q_PROJ: value * torch.eye(HIDDEN)}


@pytest.fixture
def make(tmp_path: Path, save_model: Callable[..., Path]) -> Callable[[str, list[str], float], str]:
    def make_one(name: str, tokens: list[str], value: float) -> str:
        config = {"model_type": "llama", "vocab_size": len(tokens), "num_hidden_layers": 1}
        folder = save_model(tmp_path / name, weights(tokens, value), config)
        (folder / "tokenizer.json").write_text(tokenizer(tokens))
        return str(folder)

    return make_one


def recipe(base: str, *experts: str, method: str = "average", **keys: Any) -> Mapping[str, Any]:
    return {"merge_method": method, "base_model": base, "models": list(experts), **keys}


def test_rows_are_matched_by_token(make: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any) -> None:
    base = make("base", ["a", "b", "c"], 0.0)
    expert = make("expert", ["c", "x", "a"], 4.0)  # lacks b, and has x in another position
    pipeline(recipe(base, expert, tokenizer_source="base"), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    expected = torch.tensor([4.0 + 9700, 9800, 4.0 + 9900])  # b is the row of the base
    torch.testing.assert_close(merged[EMBED][:, 0], expected)
    torch.testing.assert_close(merged[HEAD][:, 0], torch.tensor([-4.0 - 9700, -9800, -4.0 - 9900]))


@pytest.mark.parametrize("method", ["average", "ties", "swudi_a", "linear"])
def test_new_tokens_of_a_union_are_the_mean_of_the_experts_that_have_them(
    make: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any, method: str
) -> None:
    base = make("base", ["a", "b"], 0.0)
    first, second = make("first", ["a", "b", "x"], 2.0), make("second", ["y", "b", "x", "a"], 4.0)
    keys = {"parameters": {"density": 1.0, "normalize": False}} if method == "ties" else {}
    pipeline(recipe(base, first, second, method=method, tokenizer_source="union", **keys), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    assert merged[EMBED].shape == (4, HIDDEN)
    x, y = 12000 + 3.0, 12100 + 4.0  # x is the mean of both experts, y is the row of the second
    # tokens of the base: base + mean delta (3), with linear the mean of the experts; ties adds deltas that agree (6)
    delta = 6.0 if method == "ties" else 3.0
    if method == "linear":
        # without a global weight the base is not averaged; it provides y for the expert that lacks it
        expected = [9700 + 3.0, 9800 + 3.0, x, y]
    else:
        # deltas of x are -1 and +1 around its mean 3; y has no delta
        middle = {"ties": x - 1.0, "average": x, "swudi_a": x}[method]
        expected = [9700 + delta, 9800 + delta, middle, y]
    found = merged[EMBED][:, 0]
    if method == "ties":  # the signs of -1 and +1 tie, so either is right
        assert abs(float(found[2]) - x) <= 1.0
        found, expected = found[[0, 1, 3]], [expected[0], expected[1], expected[3]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-2)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == 4
    added = json.loads((tmp_path / "out/tokenizer.json").read_text())
    known = {**added["model"]["vocab"], **{entry["content"]: entry["id"] for entry in added["added_tokens"]}}
    assert known == {"a": 0, "b": 1, "x": 2, "y": 3}


def test_embeddings_of_the_base_get_the_new_rows(
    make: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any
) -> None:
    base, expert = make("base", ["a", "b"], 0.0), make("expert", ["x", "a", "b"], 2.0)
    keys = {"embeddings": "base", "lm_head": "base", "tokenizer_source": "union"}
    pipeline(recipe(base, expert, method="swudi", **keys), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    torch.testing.assert_close(merged[EMBED][:, 0], torch.tensor([9700.0, 9800.0, 12002.0]))


def test_the_vocabulary_of_an_expert(make: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any) -> None:
    base, expert = make("base", ["a", "b", "c"], 0.0), make("expert", ["c", "d", "a"], 4.0)
    pipeline(recipe(base, expert, tokenizer_source=expert), tmp_path / "out")
    found = load_checkpoint(tmp_path / "out")[EMBED][:, 0]
    torch.testing.assert_close(found, torch.tensor([9904.0, 10004.0, 9704.0]))
    assert json.loads((tmp_path / "out/tokenizer.json").read_text())["model"]["vocab"] == {"c": 0, "d": 1, "a": 2}


def test_appended_tokens_are_left_out_with_a_warning(
    make: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any
) -> None:
    base, expert = make("base", ["a", "b"], 0.0), make("expert", ["a", "b", "x"], 4.0)
    result = pipeline(recipe(base, expert), tmp_path / "out")
    assert any("1 are left out" in warning for warning in result.warnings)
    torch.testing.assert_close(load_checkpoint(tmp_path / "out")[EMBED][:, 0], torch.tensor([9704.0, 9804.0]))


def test_a_union_in_another_order(make: Any, pipeline: Any, tmp_path: Path, load_checkpoint: Any) -> None:
    from eigenmerge.core.recipe.recipe import recipe_from_mapping

    base, expert = make("base", ["a", "b"], 0.0), make("expert", ["b", "x", "a"], 4.0)
    loaded = recipe_from_mapping(recipe(base, expert, tokenizer_source="union"))
    pipeline(loaded, tmp_path / "out", store=str(tmp_path / "store"))
    found = load_checkpoint(tmp_path / "out")[EMBED][:, 0]
    torch.testing.assert_close(found, torch.tensor([9704.0, 9804.0, 12004.0]))


def test_rows_of_configured_tokens(make: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any) -> None:
    """As mergekit: models that lack a token take its row from the source, and with `force` all models do."""
    base, first = make("base", ["a", "b", "c"], 0.0), make("first", ["a", "b", "x"], 2.0)
    second = make("second", ["y", "a", "b"], 4.0)
    tokens = {
        "c": {"source": {"kind": "model_token", "model": first, "token": "x"}},
        "x": {"source": first},
        "y": {"source": {"kind": "model_token", "model": base, "token_id": 1}},
        "b": {"source": second, "force": True},
        "n": {"source": {"kind": "zero"}},
    }
    keys = {"tokenizer": {"source": "union", "tokens": tokens}}
    pipeline(recipe(base, first, second, **keys), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    found = merged[EMBED][:, 0]
    # a: base + mean delta; b: second's row in all models; c: base + (two models with the row of x) - base
    x = 12002.0
    c = 9900.0 + ((x - 9900.0) + (x - 9900.0)) / 2
    y = 9800.0 + (0.0 + (12104.0 - 9800.0)) / 2
    expected = [9703.0, 9804.0, c, x, y, 0.0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-2)
    torch.testing.assert_close(merged[HEAD], -merged[EMBED])
    tokenizer_json = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert {entry["content"]: entry["id"] for entry in tokenizer_json["added_tokens"]} == {"x": 3, "y": 4, "n": 5}
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 6


@pytest.mark.parametrize("method", ["average", "linear", "swudi"])
def test_padded_rows_are_the_mean_row(
    make: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any, method: str
) -> None:
    base, expert = make("base", ["a", "b", "c"], 0.0), make("expert", ["c", "b", "a"], 4.0)
    keys = {"tokenizer": {"source": "base", "pad_to_multiple_of": 8}}
    pipeline(recipe(base, expert, method=method, **keys), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")[EMBED]
    assert merged.shape == (8, HIDDEN)
    torch.testing.assert_close(merged[:3, 0], torch.tensor([9704.0, 9804.0, 9904.0]))
    torch.testing.assert_close(merged[3:], merged[:3].mean(0).expand(5, HIDDEN), rtol=1e-6, atol=1e-2)
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 8


def test_configured_tokens_that_cannot_be_found(make: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    base, expert = make("base", ["a", "b"], 0.0), make("expert", ["a", "b"], 4.0)
    tokens: dict[str, Any] = {"z": {"source": base}}
    keys = {"tokenizer": {"source": "base", "tokens": tokens}}
    with pytest.raises(RecipeError, match=r"tokenizer.tokens.z: .*base has no token 'z'"):
        pipeline(recipe(base, expert, **keys), tmp_path / "out")
    tokens["z"] = {"source": {"kind": "model_token", "model": base, "token_id": 9}}
    with pytest.raises(CheckpointError, match=r"takes row 9, found 2 rows"):
        pipeline(recipe(base, expert, **keys), tmp_path / "out")
    tokens["z"] = {"source": "elsewhere"}
    with pytest.raises(RecipeError, match=r"'elsewhere' is not one of the merged models"):
        pipeline(recipe(base, expert, **keys), tmp_path / "out")
