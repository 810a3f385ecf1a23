"""Fingerprints: equal for equal files, different for every change that can change a merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eigenmerge.core.formats.safetensors_header import build_header, parse_header
from eigenmerge.core.storage.checkpoints.fingerprint import (
    fingerprint_adapted_model,
    fingerprint_adapter,
    fingerprint_file,
    fingerprint_model,
)
from eigenmerge.core.storage.store import ObjectInfo, Store

CONTENT = build_header({"a": ("F32", (2,)), "b": ("F32", (3,))}, {"format": "pt"}) + bytes(20)
HEADER = parse_header(CONTENT, len(CONTENT), "x")
INFO = ObjectInfo("model.safetensors", len(CONTENT), "etag", 1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    store.write(INFO.key, CONTENT)
    return store


def test_stat_depends_on_header_size_and_etag(store: Store) -> None:
    def stat(info: ObjectInfo = INFO, tensors: dict[str, tuple[str, tuple[int, ...]]] | None = None) -> str:
        header = HEADER
        if tensors is not None:
            data = build_header(tensors, {"format": "pt"}) + bytes(20)
            header = parse_header(data, len(data), "x")
        return fingerprint_file(store, info, header, "stat")

    prints = {
        stat(),
        stat(replace(INFO, etag="other")),
        stat(replace(INFO, size=1)),
        stat(replace(INFO, key="other.safetensors")),
        stat(tensors={"a": ("F32", (2,)), "c": ("F32", (3,))}),
        stat(tensors={"b": ("F32", (3,)), "a": ("F32", (2,))}),
        stat(tensors={"a": ("I32", (2,)), "b": ("F32", (3,))}),
    }
    assert len(prints) == 7
    assert stat(replace(INFO, modified=99.0)) == stat()


def test_content_depends_on_the_bytes_alone(store: Store) -> None:
    before = fingerprint_file(store, INFO, HEADER, "content")
    assert fingerprint_file(store, replace(INFO, etag="other"), HEADER, "content") == before
    store.write(INFO.key, CONTENT[:-1] + b"\x01")
    assert fingerprint_file(store, INFO, HEADER, "content") != before


def test_a_model_is_its_files_in_any_order() -> None:
    assert fingerprint_model({"x": "1", "y": "2"}) == fingerprint_model({"y": "2", "x": "1"})
    assert fingerprint_model({"x": "1", "y": "2"}) != fingerprint_model({"x": "2", "y": "1"})


def test_the_config_of_an_adapter_counts() -> None:
    assert fingerprint_adapter("w", {"r": 2, "lora_alpha": 4}) == fingerprint_adapter("w", {"lora_alpha": 4, "r": 2})
    assert fingerprint_adapter("w", {"lora_alpha": 4}) != fingerprint_adapter("w", {"lora_alpha": 8})
    assert fingerprint_adapted_model("m", "a") != fingerprint_adapted_model("a", "m")
