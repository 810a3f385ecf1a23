"""A Llama of a few kilobytes and its fine-tuned experts, as Hugging Face directories on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 32, 64, 50, 3


def llama_shapes(layers: int = LAYERS, hidden: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a Llama of a few kilobytes."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for index in range(layers):
        block = f"model.layers.{index}"
        shapes |= {
            f"{block}.input_layernorm.weight": (hidden,),
            f"{block}.self_attn.q_proj.weight": (hidden, hidden),
            f"{block}.self_attn.k_proj.weight": (hidden // 2, hidden),
            f"{block}.self_attn.v_proj.weight": (hidden // 2, hidden),
            f"{block}.self_attn.o_proj.weight": (hidden, hidden),
            f"{block}.post_attention_layernorm.weight": (hidden,),
            f"{block}.mlp.gate_proj.weight": (INTERMEDIATE, hidden),
            f"{block}.mlp.up_proj.weight": (INTERMEDIATE, hidden),
            f"{block}.mlp.down_proj.weight": (hidden, INTERMEDIATE),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def llama_config(layers: int = LAYERS, hidden: int = HIDDEN) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def base_weights(seed: int = 0, **sizes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.1
        for name, shape in llama_shapes(**sizes).items()
    }


def expert_weights(base: Mapping[str, torch.Tensor], seed: int, size: float = 0.01) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return {name: value + size * torch.randn(value.shape, generator=generator) for name, value in base.items()}


def save_model(folder: Path, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config or llama_config()))
    (folder / "tokenizer.json").write_text("{}")
    return folder


LETTERS = ["<unk>", *"abcdefghijklmnopqrstuvwxyz .,?:;'\n0123456789"]  # at most VOCABULARY
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def add_tokenizer(folder: Path, template: str = TEMPLATE) -> None:
    """Write a tokenizer of single letters, which transformers can load, and a chat template."""
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@dataclass
class Models:
    """A base and its experts below one folder."""

    root: Path
    base: Path
    experts: list[Path]
    base_tensors: dict[str, torch.Tensor] = field(repr=False)
    expert_tensors: list[dict[str, torch.Tensor]] = field(repr=False)

    def recipe(self, method: str = "swudi", **keys: Any) -> dict[str, Any]:
        return {
            "merge_method": method,
            "base_model": str(self.base),
            "models": [{"model": str(path)} for path in self.experts],
            **keys,
        }

    def write_recipe(self, method: str = "swudi", name: str = "recipe.yml", **keys: Any) -> Path:
        path = self.root / name
        path.write_text(yaml.safe_dump(self.recipe(method, **keys)))
        return path


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a Hugging Face directory."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors
