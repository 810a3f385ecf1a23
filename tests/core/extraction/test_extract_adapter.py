"""A LoRA adapter of a full fine-tune: exact at full rank, optimal at a lower one, refused where it would be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.errors import CheckpointError, DestinationError, EigenmergeError, RecipeError, ShapeError
from eigenmerge.core.extraction.extract_adapter import REPORT_NAME, extract_adapter

from ...small_models import base_weights, llama_config, save_model

Q = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.2.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
EMBED = "model.embed_tokens.weight"


def low_rank(name: str, rank: int, base: dict[str, torch.Tensor]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    rows, columns = base[name].shape
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    return base[name] + 0.01 * left @ right


@pytest.fixture
def base(tmp_path: Path) -> dict[str, torch.Tensor]:
    weights = base_weights()
    save_model(tmp_path / "base", weights)
    return weights


@pytest.fixture
def extract(tmp_path: Path, base: dict[str, torch.Tensor]) -> Callable[..., Any]:
    def run(changes: dict[str, torch.Tensor], config: dict[str, Any] | None = None, **options: Any) -> Any:
        save_model(tmp_path / "tuned", {**base, **changes}, config)
        return extract_adapter(str(tmp_path / "base"), str(tmp_path / "tuned"), str(tmp_path / "out"), **options)

    return run


def test_the_adapter_gives_the_fine_tunes_logits_in_peft(
    extract: Callable[..., Any], base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    changes = {Q: low_rank(Q, 3, base), DOWN: low_rank(DOWN, 2, base), NORM: base[NORM] * 1.5, EMBED: base[EMBED] + 0.1}
    result = extract(changes, rank=3)
    assert result.error < 1e-5 and {item.form for item in result.tensors} == {"factors", "whole"}

    def logits(folder: str, adapter: str | None = None) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, tmp_path / adapter)
        with torch.no_grad():
            return model(input_ids=torch.arange(12).reshape(1, 12)).logits

    tuned = logits("tuned")
    torch.testing.assert_close(logits("base", "out"), tuned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits("base"), tuned, rtol=1e-2, atol=1e-2)


def test_a_lower_rank_is_the_best_approximation(extract: Callable[..., Any], base: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(4)
    delta = torch.randn(base[Q].shape, generator=generator)
    result = extract({Q: base[Q] + delta}, rank=8)
    (item,) = result.tensors
    values = torch.linalg.svdvals(delta.double())
    expected = float((values[8:].square().sum() / values.square().sum()).sqrt())
    assert (item.rank, item.name) == (8, Q)
    assert item.error == pytest.approx(expected, rel=1e-4) and result.error == pytest.approx(expected, rel=1e-4)


def test_each_layer_has_the_smallest_rank_of_an_error(
    extract: Callable[..., Any], base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    result = extract({Q: low_rank(Q, 5, base), DOWN: low_rank(DOWN, 2, base)}, max_error=1e-3)
    assert {item.name: item.rank for item in result.tensors} == {Q: 5, DOWN: 2}
    assert all(item.error < 1e-3 for item in result.tensors)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 5 and list(config["rank_pattern"].values()) == [2]
    report = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert [row["name"] for row in report["tensors"]] == [Q, DOWN]


def test_the_merged_adapter_is_the_fine_tune(
    extract: Callable[..., Any], base: dict[str, torch.Tensor], pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    tuned = low_rank(Q, 4, base)
    extract({Q: tuned, NORM: base[NORM] * 2}, rank=4)
    recipe = {"merge_method": "average", "base_model": str(tmp_path / "base"), "models": [str(tmp_path / "out")]}
    pipeline(recipe, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    torch.testing.assert_close(merged[Q], tuned, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged[NORM], base[NORM] * 2)


def test_what_cannot_be_right_is_refused(
    extract: Callable[..., Any], base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def refused(kind: type[EigenmergeError], says: str, **arguments: Any) -> None:
        with pytest.raises(kind) as caught:
            extract(**arguments)
        assert says in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "out" / "adapter_config.json").exists()

    refused(CheckpointError, "have equal weights", changes={}, rank=4)
    refused(RecipeError, "give --rank", changes={Q: base[Q] + 1})
    refused(ShapeError, EMBED, changes={EMBED: torch.zeros(51, 32)}, rank=4)
    refused(CheckpointError, "an adapter cannot add it", changes={"model.extra.weight": torch.ones(4, 4)}, rank=4)
    refused(CheckpointError, "no matrix", changes={NORM: base[NORM] * 2}, rank=4)
    only = {EMBED: base[EMBED] + 1}
    refused(CheckpointError, "every changed tensor is left out", changes=only, rank=4, leave_out=["*embed*"])
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "mine.txt").write_text("x")
    refused(DestinationError, "is not empty", changes={Q: base[Q] + 1}, rank=4)


def test_a_changed_embedding_of_a_tied_model_is_refused_or_left_out(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in base_weights().items() if name != "lm_head.weight"}
    config = {**llama_config(), "tie_word_embeddings": True}
    save_model(tmp_path / "base", weights, config)
    tuned = {**weights, EMBED: weights[EMBED] + 1, Q: weights[Q] + torch.eye(32)}
    save_model(tmp_path / "tuned", tuned, config)
    places = [str(tmp_path / name) for name in ("base", "tuned", "out")]
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight: is changed, and PEFT would not"):
        extract_adapter(*places, rank=4)
    result = extract_adapter(*places, rank=4, leave_out=["*embed_tokens*"])
    left_out = next(item for item in result.tensors if item.form == "left out")
    assert left_out.name == EMBED and left_out.norm == pytest.approx(weights[EMBED].numel() ** 0.5, rel=1e-5)
    assert result.error > 0.5


def test_weights_stored_in_out_have_transposed_factors(tmp_path: Path) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1}
    save_model(tmp_path / "base", {name: torch.zeros(8, 24)}, config)
    delta = torch.randn(8, 1) @ torch.randn(1, 24)
    save_model(tmp_path / "tuned", {name: delta}, config)
    extract_adapter(str(tmp_path / "base"), str(tmp_path / "tuned"), str(tmp_path / "out"), rank=1)
    factors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    down, up = (factors[f"base_model.model.transformer.h.0.mlp.c_fc.lora_{part}.weight"] for part in "AB")
    assert (down.shape, up.shape) == ((1, 8), (24, 1))
    torch.testing.assert_close((up @ down).T, delta)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
