"""Write the Llama checkpoints that whole merges are timed with.

python -m tests.benchmarks.peers.programs.llama FOLDER SIZE NUM_EXPERTS
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama checkpoint in bfloat16."""

    layers: int
    hidden: int
    inner: int
    vocabulary: int


SIZES = {
    "7 MB": Size(4, 256, 688, 1024),
    "70 MB": Size(2, 1024, 4096, 1024),
    "400 MB": Size(8, 1024, 4096, 32000),
}


def write_models(folder: Path, size: Size, num_experts: int) -> None:
    """Write base and experts; their differences are of rank 8 and a hundredth of the weights."""
    import torch
    from safetensors.torch import save_file

    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (size.vocabulary, size.hidden),
        "lm_head.weight": (size.vocabulary, size.hidden),
    }
    shapes["model.norm.weight"] = (size.hidden,)
    for layer in range(size.layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (size.hidden, size.hidden) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (size.inner, size.hidden) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (size.hidden, size.inner)
        shapes |= {f"{at}{name}_layernorm.weight": (size.hidden,) for name in ("input", "post_attention")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": size.vocabulary,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for index in range(-1, num_experts):
        target = folder / ("base" if index < 0 else f"expert{index}")
        target.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in base.items():
            changed = tensor
            if index >= 0:
                left, right = (
                    torch.randn((length, 8), generator=generator) for length in (len(tensor), tensor[0].numel())
                )
                changed = tensor + (7e-5 * left @ right.T).reshape(tensor.shape)
            tensors[name] = changed.bfloat16()
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    write_models(Path(sys.argv[1]), SIZES[sys.argv[2]], int(sys.argv[3]))
