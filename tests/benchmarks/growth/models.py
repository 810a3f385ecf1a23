"""Write Llama models of any size from cheap random numbers, with full experts or LoRA adapters of them.

    python tests/benchmarks/growth/models.py FOLDER '{"hidden": 512, "inner": 1408, "layers": 4}' --experts 8

Weights are pieces of one block of normal numbers, at an offset that follows from the name: a billion of them take
seconds, and each matrix begins elsewhere. An expert is the base plus a matrix of rank 8.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

_DELTA_RANK = 8
_BLOCK = 2**24


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama checkpoint in bfloat16. `kv`: rows of its key and value projections; None: as many as `hidden`."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int = 2048
    kv: int | None = None

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the name of each linear layer, without ".weight", and its shape (out, in)."""
        kv = self.kv or self.hidden
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            for name, rows in (("q", self.hidden), ("k", kv), ("v", kv), ("o", self.hidden)):
                yield f"{at}self_attn.{name}_proj", (rows, self.hidden)
            yield f"{at}mlp.gate_proj", (self.inner, self.hidden)
            yield f"{at}mlp.up_proj", (self.inner, self.hidden)
            yield f"{at}mlp.down_proj", (self.hidden, self.inner)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor. Embeddings are tied."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        found |= {f"{name}.weight": shape for name, shape in self.matrices()}
        norms = [f"model.layers.{layer}.{at}_layernorm" for layer in range(self.layers) for at in _NORMS]
        return found | {f"{name}.weight": (self.hidden,) for name in [*norms, "model.norm"]}

    def config(self) -> dict[str, object]:
        head = 64
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": max(1, self.hidden // head),
            "num_key_value_heads": max(1, (self.kv or self.hidden) // head),
            "head_dim": head,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }


_NORMS = ("input", "post_attention")


class Numbers:
    """Normal numbers of bfloat16, always the same for a name."""

    def __init__(self) -> None:
        self._block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).bfloat16()

    def of(self, name: str, *shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") % _BLOCK
        pieces = [self._block[start : start + count]]
        while (rest := count - sum(map(len, pieces))) > 0:
            pieces.append(self._block[:rest])
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).reshape(shape)


def write_models(folder: Path, size: Size, num_experts: int, num_adapters: int = 0, rank: int = 16) -> None:
    """Write `folder`/base, expert0, ... and adapter0, ...: what is there already stays."""
    numbers = Numbers()
    for index in range(-1, num_experts):
        target = folder / ("base" if index < 0 else f"expert{index}")
        if target.exists():
            continue
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(size.config()))
        tensors = {name: _weight(numbers, name, shape, index) for name, shape in size.shapes().items()}
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for index in range(num_adapters):
        _write_adapter(folder / f"adapter{index}", numbers, size, index, rank)


def _weight(numbers: Numbers, name: str, shape: tuple[int, ...], index: int) -> torch.Tensor:
    if len(shape) == 1:
        return torch.full(shape, 1.0 + 0.01 * (index + 1), dtype=torch.bfloat16)
    base = numbers.of(name, *shape) * 0.02
    if index < 0:
        return base
    left = numbers.of(f"{index} {name} left", shape[0], _DELTA_RANK).float() * 7e-4
    right = numbers.of(f"{index} {name} right", _DELTA_RANK, shape[1]).float()
    return torch.addmm(base.float(), left, right).bfloat16()


def _write_adapter(target: Path, numbers: Numbers, size: Size, index: int, rank: int) -> None:
    if target.exists():
        return
    target.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in size.matrices():
        place = f"base_model.model.{name}"
        tensors[f"{place}.lora_A.weight"] = numbers.of(f"{index} {name} A", rank, columns) * 0.02
        tensors[f"{place}.lora_B.weight"] = numbers.of(f"{index} {name} B", rows, rank) * 0.01
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    names = sorted({name.rpartition(".")[2] for name, _ in size.matrices()})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": names}
    (target / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", help="fields of Size as JSON")
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--adapters", type=int, default=0)
    given = parser.parse_args()
    write_models(given.folder, Size(**json.loads(given.size)), given.experts, given.adapters)
