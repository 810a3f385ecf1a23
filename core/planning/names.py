"""Tensor names: the layer that a tensor belongs to, and its kind by name, shape and dtype."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal

from ..formats.dtypes import MERGEABLE_DTYPES

Kind = Literal[
    "matrix",  # 2-D weight
    "expert_stack",  # 3-D, one matrix per expert of a mixture
    "router",  # 2-D, chooses the experts of a mixture
    "router_vector",  # its bias and corrections
    "conv",  # convolution kernel, 3-D and more
    "embedding",  # rows indexed by tokens or positions
    "lm_head",  # output projection, rows indexed by tokens
    "vector",  # norms, biases, scalars, and anything that is not a matrix
    "buffer",  # not trained: integers, switches, precomputed tables
    "empty",  # no elements
]

# Words before the layer number in names of Hugging Face, timm and OpenAI checkpoints. A number after another word
# (mlp1.0, classifier.2) is a position in a small module, not a layer.
_LAYER = re.compile(
    r"^(?P<stack>(?:.*?\.)?(?:layers|layer|h|blocks|block|resblocks|decoder_layers|encoder_layers))\.(?P<index>\d+)\."
)
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens\w*|\w*_?embeddings?|wte|wpe|tok_embeddings|shared|embed_in|embed_positions|pos_embed|"
    r"relative_attention_bias|word_embeddings_for_head)(\.weight)?$"
)
_LM_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|cls\.predictions\.decoder|vocab_projector|proj_out)\.weight$")
# Precomputed tables that some versions of a library save and others recompute.
_FLOAT_BUFFER = re.compile(r"(inv_freq|masked_bias|rotary_emb\.(cos|sin)_cached|position_ids)$|\.attn\.bias$")
# Parameters that are stored as logarithms (A_log of Mamba) are no linear maps; `logits` and `catalog` are other words.
_LOGARITHM = re.compile(r"(^|[._])logs?$")
_DIGITS = re.compile(r"(\d+)")


def layer_of(name: str) -> tuple[str, int] | None:
    """Return stack and layer, ("model.layers", 7) for model.layers.7.mlp.up_proj.weight; None outside of layers."""
    match = _LAYER.match(name)
    return (match["stack"], int(match["index"])) if match else None


def with_layer(name: str, index: int) -> str:
    """Return the name of the same tensor in another layer."""
    match = _LAYER.match(name)
    assert match, f"{name} is in no layer"
    return f"{match['stack']}.{index}.{name[match.end() :]}"


def stack_depths(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each stack: the largest index + 1."""
    depths: dict[str, int] = {}
    for name in names:
        found = layer_of(name)
        if found is not None and found[1] >= depths.get(found[0], 0):
            depths[found[0]] = found[1] + 1
    return depths


def gradient_position(name: str, depths: Mapping[str, int]) -> float:
    """Return the position t in [0, 1] at which gradients are evaluated.

    As in mergekit, t is 0 outside of layers and 1 in a stack of one layer.
    """
    found = layer_of(name)
    if found is None:
        return 0.0
    depth = depths[found[0]]
    return found[1] / (depth - 1) if depth > 1 else 1.0


def tensor_kind(name: str, shape: tuple[int, ...], dtype: str) -> Kind:
    """Return the kind of a tensor, which determines what a spectral method does with it unless a rule does."""
    if 0 in shape:
        return "empty"
    if dtype not in MERGEABLE_DTYPES:
        return "buffer"
    return _kind_by_template(_DIGITS.sub("0", name), len(shape))


@lru_cache(maxsize=65536)  # 10,000 tensors have a few hundred distinct names once numbers are replaced
def _kind_by_template(name: str, ndim: int) -> Kind:
    """Return the kind of a tensor by its name, with every number replaced by 0, and its number of dimensions."""
    if _FLOAT_BUFFER.search(name) and not (name.endswith(".attn.bias") and ndim == 1):
        return "buffer"
    if ndim < 2 or name.endswith("bias") or _LOGARITHM.search(name):
        # gate_up_proj_bias, (E, M), is a stack of vectors; relative_attention_bias.weight does not end with "bias"
        return "vector"
    if ndim == 2:
        if _LM_HEAD.search(name) and "attention" not in name and _LAYER.match(name) is None:
            return "lm_head"
        return "embedding" if _EMBEDDING.search(name) else "matrix"
    if ndim == 3 and ".experts." in f".{name}":
        return "expert_stack"
    if ndim == 3 and _EMBEDDING.search(name):
        return "vector"  # (1, N, D) tables of positions
    return "conv" if name.endswith(("weight", "kernel")) else "vector"  # class tokens are 3-D too


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key that orders numbers by value: layers.2 before layers.10."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in _DIGITS.split(name))
