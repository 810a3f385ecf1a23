"""Fingerprints: hashes that identify the weights of a model, of its files and of its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ...formats.digest import hash_json
from ...formats.safetensors_header import SafetensorsHeader
from ..backends.protocol import ObjectInfo
from ..object_hash import hash_object
from ..store import Store

# "stat" hashes name, header, size and etag (locally the modification time); "content" hashes all bytes.
FingerprintKind = Literal["stat", "content"]


def fingerprint_file(store: Store, info: ObjectInfo, header: SafetensorsHeader, kind: FingerprintKind) -> str:
    """Return the fingerprint of one safetensors file. Cost: one read of the file for "content", else nothing."""
    if kind == "content":
        return hash_object(store, info.key, info.size)
    tensors = [[name, entry.dtype, entry.shape, entry.start] for name, entry in sorted(header.tensors.items())]
    return hash_json([info.key, info.size, info.etag, tensors, dict(header.metadata)])


def fingerprint_model(file_fingerprints: Mapping[str, str]) -> str:
    """Return the fingerprint of a model from those of its weight files, by file name."""
    return hash_json([[name, file_fingerprints[name]] for name in sorted(file_fingerprints)])


def fingerprint_adapter(weights: str, config: Mapping[str, object]) -> str:
    """Return the fingerprint of an adapter from that of its weights and its config, which scales the weights."""
    return hash_json([weights, dict(config)])


def fingerprint_adapted_model(model: str, adapter: str) -> str:
    """Return the fingerprint of a model with an adapter from those of both."""
    return hash_json([model, adapter])
