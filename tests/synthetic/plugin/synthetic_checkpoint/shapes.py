"""Tensors of a synthetic Llama: shapes of the published models, names as transformers stores them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class Llama:
    """One model.

    blocks : numbers of the transformer blocks; in a subset each block keeps its number and its bytes
    """

    preset: str
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    blocks: range
    tied: bool = False
    bare: bool = False  # without embeddings and lm_head

    def linears(self, block: int) -> dict[str, tuple[int, int]]:
        """Return (out, in) of the linear layers of a block by module name."""
        attention, key_value = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        prefix = f"model.layers.{block}."
        return {
            prefix + "mlp.down_proj": (self.hidden, self.intermediate),
            prefix + "mlp.gate_proj": (self.intermediate, self.hidden),
            prefix + "mlp.up_proj": (self.intermediate, self.hidden),
            prefix + "self_attn.k_proj": (key_value, self.hidden),
            prefix + "self_attn.o_proj": (self.hidden, attention),
            prefix + "self_attn.q_proj": (attention, self.hidden),
            prefix + "self_attn.v_proj": (key_value, self.hidden),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by name, in the order of the files."""
        found: dict[str, tuple[int, ...]] = {}
        if not self.bare:
            found["model.embed_tokens.weight"] = (self.vocabulary, self.hidden)
        for block in self.blocks:
            found[f"model.layers.{block}.input_layernorm.weight"] = (self.hidden,)
            found |= {f"{name}.weight": shape for name, shape in self.linears(block).items()}
            found[f"model.layers.{block}.post_attention_layernorm.weight"] = (self.hidden,)
        found["model.norm.weight"] = (self.hidden,)
        if not self.bare and not self.tied:
            found["lm_head.weight"] = (self.vocabulary, self.hidden)
        return found

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the factors of a PEFT adapter on every linear layer."""
        found: dict[str, tuple[int, ...]] = {}
        for block in self.blocks:
            for name, (rows, columns) in self.linears(block).items():
                found[f"base_model.model.{name}.lora_A.weight"] = (LORA_RANK, columns)
                found[f"base_model.model.{name}.lora_B.weight"] = (rows, LORA_RANK)
        return found

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.blocks.stop,
            "num_key_value_heads": self.key_value_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }


_PRESETS = {
    model.preset: model
    for model in (
        Llama("llama-70b", 8192, 28672, 64, 8, 128, 128256, range(80)),
        Llama("llama-8b", 4096, 14336, 32, 8, 128, 128256, range(32)),
        Llama("llama-1b", 2048, 8192, 32, 8, 64, 128256, range(16), tied=True),
        Llama("llama-tiny", 64, 176, 4, 2, 16, 256, range(4)),
    )
}
_MODEL = re.compile(r"(?P<preset>[a-z]+-[a-z0-9]+)(\.blocks-(?P<first>\d+)-(?P<last>\d+))?(?P<bare>\.bare)?")


@lru_cache
def parse_model(text: str) -> Llama | None:
    """Return the model named `llama-70b`, `llama-70b.blocks-0-1` or `llama-70b.blocks-40-40.bare`, or None."""
    match = _MODEL.fullmatch(text)
    if match is None or match["preset"] not in _PRESETS:
        return None
    model = _PRESETS[match["preset"]]
    if match["first"] is not None:
        blocks = range(int(match["first"]), int(match["last"]) + 1)
        if not blocks or blocks.stop > model.blocks.stop:
            return None
        model = replace(model, blocks=blocks)
    return replace(model, bare=match["bare"] is not None)
