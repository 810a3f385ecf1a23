"""LoRA of MLX, merged as `mlx_lm.fuse` merges it, and written as an adapter of PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Q, EMBED, SCALE = "model.layers.0.self_attn.q_proj", "model.embed_tokens", 3.0


def test_an_adapter_of_mlx(pipeline: Callable[..., Any], tmp_path: Path) -> None:
    weights = {f"{Q}.weight": torch.randn(6, 4), f"{EMBED}.weight": torch.randn(10, 4)}
    factors = {
        f"{module}.lora_{part}": torch.randn(shape)
        for module, shapes in ((Q, ((4, 2), (2, 6))), (EMBED, ((10, 2), (2, 4))))
        for part, shape in zip("ab", shapes, strict=True)
    }
    base, expert = tmp_path / "base", tmp_path / "expert"
    for folder, tensors, name in ((base, weights, "model"), (expert, factors, "adapters")):
        folder.mkdir()
        save_file(tensors, folder / f"{name}.safetensors", {"format": "mlx"})
    (base / "config.json").write_text("{}")
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": SCALE}}
    (expert / "adapter_config.json").write_text(json.dumps(config))
    recipe = {"merge_method": "average", "base_model": str(base), "models": [str(expert)]}
    pipeline(recipe, tmp_path / "dense")
    found = load_file(tmp_path / "dense/model.safetensors")
    delta = {name: found[name] - weights[name] for name in weights}
    expected = {
        f"{Q}.weight": SCALE * (factors[f"{Q}.lora_a"] @ factors[f"{Q}.lora_b"]).T,
        f"{EMBED}.weight": SCALE * factors[f"{EMBED}.lora_a"] @ factors[f"{EMBED}.lora_b"],
    }
    for name, value in expected.items():
        assert torch.allclose(delta[name], value, atol=1e-5), name

    pipeline({**recipe, "output": "adapter"}, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    at = "base_model.model."
    product = stored[f"{at}{Q}.lora_B.weight"] @ stored[f"{at}{Q}.lora_A.weight"]
    assert torch.allclose(product, expected[f"{Q}.weight"], atol=1e-5)
    product = stored[f"{at}{EMBED}.lora_embedding_B"] @ stored[f"{at}{EMBED}.lora_embedding_A"]
    assert torch.allclose(product.T, expected[f"{EMBED}.weight"], atol=1e-5)
