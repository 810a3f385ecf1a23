"""Fixtures: listings of models from tensor names and shapes, and plans of recipes given as text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from eigenmerge.core.formats.dtypes import tensor_bytes
from eigenmerge.core.listing import AdapterListing, ModelListing, TensorSource
from eigenmerge.core.planning.planner import plan_merge
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.recipe.strict_yaml import parse_yaml_mapping


def locate_tensors(
    uri: str, tensors: Mapping[str, tuple[int, ...]], dtype: str | Mapping[str, str]
) -> dict[str, TensorSource]:
    position, placed = 1000, {}
    for name, shape in tensors.items():
        stored = dtype if isinstance(dtype, str) else dtype.get(name, "F32")
        stop = position + tensor_bytes(stored, tuple(shape))
        placed[name] = TensorSource(uri, position, stop, stored, tuple(shape))
        position = stop
    return placed


def make_model(
    name: str,
    tensors: Mapping[str, tuple[int, ...]],
    *,
    dtype: str | Mapping[str, str] = "F32",
    config: Mapping[str, Any] | None = None,
    side_files: tuple[str, ...] = ("tokenizer.json",),
    fingerprint: str | None = None,
    adapter: AdapterListing | None = None,
    uri: str | None = None,
) -> ModelListing:
    uri = uri or f"/models/{name}"
    placed = locate_tensors(f"{uri}/model.safetensors", tensors, dtype)
    num_bytes = sum(source.num_bytes for source in placed.values())
    print_ = fingerprint or hashlib.sha256(name.encode()).hexdigest()
    kind = "full" if adapter is None else "full+adapter"
    sides = {side: f"{uri}/{side}" for side in side_files}
    return ModelListing(name, uri, kind, placed, config, sides, print_, num_bytes, adapter)


def make_adapter(
    name: str,
    tensors: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any] | None = None,
    dtype: str = "F32",
) -> ModelListing:
    uri = f"/adapters/{name}"
    placed = locate_tensors(f"{uri}/adapter_model.safetensors", tensors, dtype)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **(config or {})}
    num_bytes = sum(source.num_bytes for source in placed.values())
    print_ = hashlib.sha256(uri.encode()).hexdigest()
    listing = AdapterListing(uri, settings, placed, print_, num_bytes)
    return ModelListing(name, uri, "adapter", {}, None, {}, print_, num_bytes, listing)


def llama(
    layers: int = 2,
    *,
    hidden: int = 8,
    inner: int = 16,
    vocabulary: int = 32,
    kv: int | None = None,
    lm_head: bool = True,
    prefix: str = "model.",
) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a Llama, in the order its library stores them."""
    kv = kv or hidden
    names: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (vocabulary, hidden)}
    for index in range(layers):
        at = f"{prefix}layers.{index}"
        names |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (kv, hidden),
            f"{at}.self_attn.v_proj.weight": (kv, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
        }
    names[f"{prefix}norm.weight"] = (hidden,)
    if lm_head:
        names["lm_head.weight"] = (vocabulary, hidden)
    return names


@pytest.fixture
def tensors_of() -> Callable[[Any], dict[str, Any]]:
    """Output name to TensorPlan."""
    return lambda plan: {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}


@pytest.fixture
def model() -> Callable[..., ModelListing]:
    return make_model


@pytest.fixture
def adapter() -> Callable[..., ModelListing]:
    return make_adapter


@pytest.fixture
def llama_tensors() -> Callable[..., dict[str, tuple[int, ...]]]:
    return llama


@pytest.fixture
def plan_of() -> Callable[..., Any]:
    """Plan a recipe given as text; models are looked up by the names that the recipe uses."""

    def plan(text: str, *listings: ModelListing, **options: Any) -> Any:
        recipe = recipe_from_mapping(parse_yaml_mapping(text, "recipe"))
        by_name = {listing.name: listing for listing in listings}
        base = by_name[recipe.base_model] if recipe.base_model else None
        return plan_merge(recipe, base, [by_name[name] for name in recipe.expert_references], **options)

    return plan
