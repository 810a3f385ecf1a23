"""Listings of models that are known by their config.json alone, to plan a merge of models that are not at hand.

`NAMED` has the published configurations of common models. Of any other model of the same families, its config.json is
enough. Tensor names and shapes are those of the files on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError, suggestion
from ..listing import AdapterListing, ModelListing, TensorSource
from .planned_model import place_tensors

Shapes = dict[str, tuple[int, ...]]

_LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128}
_QWEN2 = {"model_type": "qwen2", "vocab_size": 152064, "head_dim": 128}
_QWEN3 = {"vocab_size": 151936, "head_dim": 128}
#: config.json of published models, without what has no influence on shapes. Source: their repositories on the Hub.
NAMED: Mapping[str, Mapping[str, Any]] = {
    "llama-1b": {**_LLAMA3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                 "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True},
    "llama-3b": {**_LLAMA3, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                 "num_attention_heads": 24, "tie_word_embeddings": True},
    "llama-8b": {**_LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32},
    "llama-70b": {**_LLAMA3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                  "num_attention_heads": 64},
    "llama-405b": {**_LLAMA3, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
                   "num_attention_heads": 128},
    "mistral-7b": {"model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336,
                   "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    "qwen2.5-7b": {**_QWEN2, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                   "num_attention_heads": 28, "num_key_value_heads": 4},
    "qwen2.5-72b": {**_QWEN2, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
                    "num_attention_heads": 64, "num_key_value_heads": 8},
    "qwen3-8b": {**_QWEN3, "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
                 "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
    "qwen3-30b-a3b": {**_QWEN3, "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
                      "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
                      "num_key_value_heads": 4, "num_experts": 128},
    "mixtral-8x7b": {"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
                     "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                     "num_local_experts": 8},
    "deepseek-v3": {"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
                    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
                    "n_routed_experts": 256, "n_shared_experts": 1, "first_k_dense_replace": 3, "q_lora_rank": 1536,
                    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
}  # fmt: skip
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "deepseek_v3")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The configuration of a model of one of `FAMILIES`.

    name : for messages
    config : as config.json
    """

    name: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        kind = self.config.get("model_type")
        if kind not in FAMILIES:
            raise RecipeError(
                f"--shape {self.name}: model_type is {kind!r}; shapes are known of {', '.join(FAMILIES)}. For other"
                " models plan a recipe with the models themselves: only their headers are read"
            )
        self.tensors()  # every size that is needed is there

    def _size(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise RecipeError(f"--shape {self.name}: {key} is {value!r}; expected a positive number")
        return value

    def tensors(self) -> Shapes:
        """Return the shapes of all tensors by name.

        Raises
        ------
        RecipeError : a size is missing or not a positive number
        """
        hidden, vocabulary = self._size("hidden_size"), self._size("vocab_size")
        found: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
        for block in range(self._size("num_hidden_layers")):
            place = f"model.layers.{block}."
            found[place + "input_layernorm.weight"] = found[place + "post_attention_layernorm.weight"] = (hidden,)
            found |= {place + name: shape for name, shape in self._block(block)}
        found["model.norm.weight"] = (hidden,)
        if not self.config.get("tie_word_embeddings", False):
            found["lm_head.weight"] = (vocabulary, hidden)
        return found

    def _block(self, block: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from self._latent_attention() if self.config["model_type"] == "deepseek_v3" else self._attention()
        yield from self._feed_forward(block)

    def _attention(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, heads = self._size("hidden_size"), self._size("num_attention_heads")
        head = self._size("head_dim", 128 if self.config["model_type"] == "qwen3" else hidden // heads)
        rows = {"q_proj": heads * head, "k_proj": self._size("num_key_value_heads", heads) * head}
        rows["v_proj"] = rows["k_proj"]
        kind = self.config["model_type"]
        for name, size in rows.items():
            yield f"self_attn.{name}.weight", (size, hidden)
            if kind == "qwen2" or self.config.get("attention_bias"):
                yield f"self_attn.{name}.bias", (size,)
        yield "self_attn.o_proj.weight", (hidden, heads * head)
        if self.config.get("attention_bias"):
            yield "self_attn.o_proj.bias", (hidden,)
        if kind in ("qwen3", "qwen3_moe"):
            yield "self_attn.q_norm.weight", (head,)
            yield "self_attn.k_norm.weight", (head,)

    def _latent_attention(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, heads = self._size("hidden_size"), self._size("num_attention_heads")
        low, turned = self._size("kv_lora_rank"), self._size("qk_rope_head_dim")
        plain, value = self._size("qk_nope_head_dim"), self._size("v_head_dim")
        query = heads * (plain + turned)
        if self.config.get("q_lora_rank") is None:
            yield "self_attn.q_proj.weight", (query, hidden)
        else:
            rank = self._size("q_lora_rank")
            yield "self_attn.q_a_proj.weight", (rank, hidden)
            yield "self_attn.q_a_layernorm.weight", (rank,)
            yield "self_attn.q_b_proj.weight", (query, rank)
        yield "self_attn.kv_a_proj_with_mqa.weight", (low + turned, hidden)
        yield "self_attn.kv_a_layernorm.weight", (low,)
        yield "self_attn.kv_b_proj.weight", (heads * (plain + value), low)
        yield "self_attn.o_proj.weight", (hidden, heads * value)

    def _feed_forward(self, block: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, kind = self._size("hidden_size"), self.config["model_type"]
        if kind == "mixtral":
            experts, size = self._size("num_local_experts"), self._size("intermediate_size")
            yield "block_sparse_moe.gate.weight", (experts, hidden)
            for expert in range(experts):
                place = f"block_sparse_moe.experts.{expert}."
                yield from ((place + f"{name}.weight", (size, hidden)) for name in ("w1", "w3"))
                yield place + "w2.weight", (hidden, size)
            return
        if kind == "qwen3_moe" and self._is_sparse(block):
            experts = self._size("num_experts")
            yield "mlp.gate.weight", (experts, hidden)
            yield from self._mixture(experts, self._size("moe_intermediate_size"))
            return
        if kind == "deepseek_v3" and block >= self.config.get("first_k_dense_replace", 0):
            experts, size = self._size("n_routed_experts"), self._size("moe_intermediate_size")
            yield "mlp.gate.weight", (experts, hidden)
            yield "mlp.gate.e_score_correction_bias", (experts,)
            yield from self._mixture(experts, size)
            yield from self._mlp("mlp.shared_experts.", size * self._size("n_shared_experts"))
            return
        yield from self._mlp("mlp.", self._size("intermediate_size"))

    def _is_sparse(self, block: int) -> bool:
        step = self._size("decoder_sparse_step", 1)
        return block not in (self.config.get("mlp_only_layers") or ()) and (block + 1) % step == 0

    def _mixture(self, experts: int, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for expert in range(experts):
            yield from self._mlp(f"mlp.experts.{expert}.", size)

    def _mlp(self, place: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden = self._size("hidden_size")
        for name, shape in (("gate", (size, hidden)), ("up", (size, hidden)), ("down", (hidden, size))):
            yield f"{place}{name}_proj.weight", shape
            if self.config.get("mlp_bias"):
                yield f"{place}{name}_proj.bias", shape[:1]


def find_shape(name: str) -> ModelShape:
    """Return a named shape.

    Raises
    ------
    RecipeError : no shape has this name
    """
    if name not in NAMED:
        known = ", ".join(NAMED)
        raise RecipeError(
            f"--shape {name!r}: no such shape; expected a config.json or one of {known}{suggestion(name, NAMED)}"
        )
    return ModelShape(name, NAMED[name])


def shape_listing(shape: ModelShape, reference: str, rank: int) -> ModelListing:
    """Return the listing of a model of this shape in bfloat16.

    Parameters
    ----------
    reference : of a recipe; BASE+ADAPTER gives an adapter on every matrix of the blocks
    rank : of adapters
    """
    shapes = shape.tensors()
    model, plus, _ = reference.partition("+")
    uri = f"shape://{shape.name}/{model}"
    tensors = _place(shapes, f"{uri}/model.safetensors")
    return ModelListing(
        name=reference,
        uri=uri,
        kind="full+adapter" if plus else "full",
        tensors=tensors,
        config=dict(shape.config),
        side_files={},
        fingerprint=f"shape:{shape.name}/{model}",
        num_bytes=_bytes(tensors),
        adapter=_adapter(shapes, f"shape://{shape.name}/{reference}", rank) if plus else None,
    )


def _adapter(shapes: Shapes, uri: str, rank: int) -> AdapterListing:
    factors: Shapes = {}
    targets: set[str] = set()
    for name, shape in shapes.items():
        if ".layers." not in name or len(shape) != 2 or name.endswith("gate.weight"):  # no router
            continue
        module = name.removesuffix(".weight")
        targets.add(module.rpartition(".")[2])
        factors[f"base_model.model.{module}.lora_A.weight"] = (rank, shape[1])
        factors[f"base_model.model.{module}.lora_B.weight"] = (shape[0], rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(targets)}
    tensors = _place(factors, f"{uri}/adapter_model.safetensors")
    return AdapterListing(uri, config, tensors, uri, _bytes(tensors))


def _place(shapes: Shapes, uri: str) -> dict[str, TensorSource]:
    return place_tensors(uri, ((name, "BF16", shape) for name, shape in shapes.items()))


def _bytes(tensors: Mapping[str, TensorSource]) -> int:
    return sum(source.num_bytes for source in tensors.values())
