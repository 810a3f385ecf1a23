"""Tiny models for the forms of mergekit's recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..small_models import base_weights, expert_weights, llama_config, llama_shapes, save_model

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def make_models(root: Path) -> dict[str, str]:
    """Write the models below `root` and return their folders by name."""
    base = base_weights()
    found = {"base": save_model(root / "base", base)}
    for number, name in enumerate("abc"):
        found[name] = save_model(root / name, expert_weights(base, number))
    chatml = expert_weights(base, 7)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        chatml[name] = torch.cat([chatml[name], torch.full((2, chatml[name].shape[1]), 0.1)])
    found["chatml"] = save_model(root / "chatml", chatml, {**llama_config(), "vocab_size": 52})
    for name, folder in found.items():
        _write_tokenizer(folder, 52 if name == "chatml" else 50, TEMPLATE if name in "ab" else "{{ messages }} ")
    found["lora"] = _write_adapter(root / "lora")
    for number, name in enumerate(("t5", "t5b")):
        found[name] = _write(
            root / name, _t5_shapes(), number, {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2}
        )
    for number, name in enumerate(("vlm", "vlmb")):
        found[name] = _write(root / name, _vlm_shapes(), number, {"model_type": "qwen2_5_vl"})
    return {name: str(folder) for name, folder in found.items()}


def _write_tokenizer(folder: Path, rows: int, template: str) -> None:
    vocabulary = {f"t{row}": row for row in range(rows)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def _write_adapter(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn((2, 32), generator=generator) * 0.1
        tensors[f"{name}.lora_B.weight"] = torch.randn((32, 2), generator=generator) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _write(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int, config: dict[str, Any]) -> Path:
    generator = torch.Generator().manual_seed(seed)
    return save_model(folder, {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, config)


def _t5_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (10, 8), "lm_head.weight": (10, 8)}
    for stack in ("encoder", "decoder"):
        for layer in range(2):
            shapes[f"{stack}.block.{layer}.layer.0.SelfAttention.q.weight"] = (8, 8)
        shapes[f"{stack}.final_layer_norm.weight"] = (8,)
    return shapes


def _vlm_shapes() -> dict[str, tuple[int, ...]]:
    text = {name: shape for name, shape in llama_shapes(layers=1).items() if "layernorm" not in name}
    return text | {
        "visual.blocks.0.attn.qkv.weight": (24, 8),
        "visual.merger.mlp.0.weight": (8, 8),
        "visual.patch_embed.proj.weight": (8, 3, 2, 2),
    }
