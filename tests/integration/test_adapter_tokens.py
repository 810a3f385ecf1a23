"""A model with an adapter keeps the adapter's new tokens and tokenizer, as the adapter alone does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenmerge.core.errors import CheckpointError

Pipeline = Callable[..., Any]
EMBED, Q = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj"


def write_tokenizer(folder: Path, tokens: list[str]) -> None:
    vocabulary = {token: row for row, token in enumerate(tokens)}
    folder.joinpath("tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
    folder.joinpath("tokenizer_config.json").write_text(json.dumps({"chat_template": folder.name}))


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A base of 4 tokens, and an adapter on it with 2 more in an embedding that is saved whole."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    weights = {EMBED: torch.randn(4, 8), f"{Q}.weight": torch.randn(8, 8)}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "vocab_size": 4, "tie_word_embeddings": False}
    base.joinpath("config.json").write_text(json.dumps(config))
    base.joinpath("special_tokens_map.json").write_text("{}")
    write_tokenizer(base, ["a", "b", "c", "d"])
    stem = "base_model.model."
    factors = {f"{stem}{Q}.lora_A.weight": torch.randn(2, 8), f"{stem}{Q}.lora_B.weight": torch.randn(8, 2)}
    embedding = torch.cat([weights[EMBED], torch.randn(2, 8)])
    save_file({**factors, f"{stem}{EMBED}": embedding}, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "modules_to_save": ["embed_tokens"]}
    adapter.joinpath("adapter_config.json").write_text(json.dumps(config))
    write_tokenizer(adapter, ["a", "b", "c", "d", "<new>", "<newer>"])
    return base, adapter


def test_union_takes_the_new_tokens_from_both_forms(
    places: tuple[Path, Path], pipeline: Pipeline, tmp_path: Path
) -> None:
    base, adapter = places
    found: list[tuple[dict[str, torch.Tensor], bytes]] = []
    for name, expert in (("bare", str(adapter)), ("named", f"{base}+{adapter}")):
        recipe = {"merge_method": "average", "base_model": str(base), "models": [expert], "tokenizer_source": "union"}
        pipeline(recipe, tmp_path / name, tmp_path / f"store-{name}")
        tokenizer = (tmp_path / name / "tokenizer.json").read_bytes()
        found.append((load_file(tmp_path / name / "model.safetensors"), tokenizer))
    (bare, bare_tokenizer), (named, named_tokenizer) = found
    assert b"<newer>" in bare_tokenizer and bare_tokenizer == named_tokenizer
    assert bare[EMBED].shape == (6, 8)
    assert all(torch.equal(bare[name], named[name]) for name in bare)
    stored = load_file(adapter / "adapter_model.safetensors")[f"base_model.model.{EMBED}"]
    assert torch.allclose(named[EMBED][4:], stored[4:])


def test_without_a_base_the_output_has_the_tokenizer_of_the_adapter(
    places: tuple[Path, Path], pipeline: Pipeline, tmp_path: Path
) -> None:
    base, adapter = places
    out = tmp_path / "out"
    pipeline({"merge_method": "passthrough", "models": [f"{base}+{adapter}"]}, out)
    stored = load_file(adapter / "adapter_model.safetensors")[f"base_model.model.{EMBED}"]
    assert torch.equal(load_file(out / "model.safetensors")[EMBED], stored)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 6
    assert (out / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"chat_template": "adapter"}
    assert not (out / "special_tokens_map.json").exists(), "it belongs to the base's tokenizer"


def test_a_tokenizer_that_is_a_link_out_of_the_adapter_is_refused(
    places: tuple[Path, Path], pipeline: Pipeline, tmp_path: Path
) -> None:
    base, adapter = places
    outside = tmp_path / "outside.json"
    (adapter / "tokenizer_config.json").rename(outside)
    (adapter / "tokenizer_config.json").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"is a link to .*outside\.json"):
        pipeline({"merge_method": "passthrough", "models": [f"{base}+{adapter}"]}, tmp_path / "out")
