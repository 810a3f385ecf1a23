"""What is known of an input model without its weights: `storage` fills these in, the planner reads them. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where one stored tensor lies: bytes [start, stop) of the object `uri` (absolute, fsspec style)."""

    uri: str
    start: int
    stop: int
    dtype: str  # safetensors name: F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 ... BOOL
    shape: tuple[int, ...]
    scale: TensorSource | None = None  # float8: the scale that goes with it (weight_scale or weight_scale_inv)

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class LoraSource:
    """The factors of one adapted weight: delta = scaling * up @ down, transposed when fan_in_fan_out."""

    up: TensorSource  # lora_B, (M, R)
    down: TensorSource  # lora_A, (R, K)
    scaling: float
    fan_in_fan_out: bool = False


@dataclass(frozen=True, slots=True)
class AdapterListing:
    """A PEFT adapter: its config and factor tensors, names as stored (base_model.model.<module>.lora_A.weight)."""

    uri: str
    config: Mapping[str, object]  # adapter_config.json
    tensors: Mapping[str, TensorSource]
    fingerprint: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelListing:
    """One input model.

    name : as written in the recipe ("path@revision+adapter")
    kind : "full"; "adapter" (a bare PEFT directory); "full+adapter"
    tensors : stored name to place; empty for a bare adapter
    config : config.json, or None
    side_files : small files beside the weights that a Hugging Face directory carries, name to URI (tokenizer.json,
        tokenizer_config.json, special_tokens_map.json, vocab.txt, merges.txt, *.model, generation_config.json,
        chat_template.jinja, added_tokens.json, preprocessor_config.json, ...)
    fingerprint : identifies the weights: hash over each file's (name, header, size, etag or mtime), or content hashes
    """

    name: str
    uri: str
    kind: Literal["full", "adapter", "full+adapter"]
    tensors: Mapping[str, TensorSource]
    config: Mapping[str, object] | None
    side_files: Mapping[str, str]
    fingerprint: str
    num_bytes: int
    adapter: AdapterListing | None = None
