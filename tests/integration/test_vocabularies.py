"""Experts whose vocabularies differ from that of the base: rows are matched by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

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
