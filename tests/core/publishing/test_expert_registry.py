"""Scans of a registry: complete experts are listed, incomplete ones skipped, and changes alter the fingerprint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.publishing.expert_registry import scan_registry
from eigenmerge.core.storage.store import Store


def add_expert(registry: Path, name: str, value: float = 1.0) -> Path:
    folder = registry / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.full((4, 3), value)}, folder / "model.safetensors")
    return folder


def test_experts_are_found_by_name_order(tmp_path: Path) -> None:
    for name in ("zeta", "alpha", "m-1.5_b"):
        add_expert(tmp_path, name)
    scan = scan_registry(Store(str(tmp_path)))
    assert [expert.name for expert in scan.experts] == ["alpha", "m-1.5_b", "zeta"]
    assert scan.experts[0].uri == str(tmp_path / "alpha")
    assert scan.skipped == {}


def test_a_scan_repeats_and_sees_changes(tmp_path: Path) -> None:
    add_expert(tmp_path, "a")
    folder = add_expert(tmp_path, "b")
    first = scan_registry(Store(str(tmp_path))).fingerprints
    assert scan_registry(Store(str(tmp_path))).fingerprints == first
    add_expert(tmp_path, "b", value=2.0)
    later = (folder / "model.safetensors").stat().st_mtime_ns + 10**9
    os.utime(folder / "model.safetensors", ns=(later, later))
    second = scan_registry(Store(str(tmp_path))).fingerprints
    assert second["a"] == first["a"]
    assert second["b"] != first["b"]


def test_unfinished_uploads_wait_with_a_reason(tmp_path: Path) -> None:
    add_expert(tmp_path, "whole")
    (tmp_path / "only-config").mkdir()
    (tmp_path / "only-config" / "config.json").write_text("{}")
    half = add_expert(tmp_path, "half")
    content = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(content[:-5])
    merging = add_expert(tmp_path, "merging")
    (merging / ".eigenmerge-incomplete.json").write_text("{}")
    index = tmp_path / "index-first"
    index.mkdir()
    index_content = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (index / "model.safetensors.index.json").write_text(json.dumps(index_content))
    scan = scan_registry(Store(str(tmp_path)))
    assert [expert.name for expert in scan.experts] == ["whole"]
    assert set(scan.skipped) == {"only-config", "half", "index-first", "merging"}
    assert all(scan.skipped.values())


def test_names_that_mean_something_else_and_hidden_folders(tmp_path: Path) -> None:
    for name in ("ok", "name@rev", "a+b", ".cache", "_old"):
        add_expert(tmp_path, name)
    (tmp_path / "README.md").write_text("files beside the folders are no experts")
    scan = scan_registry(Store(str(tmp_path)))
    assert [expert.name for expert in scan.experts] == ["ok"]
    assert set(scan.skipped) == {"name@rev", "a+b"}
    assert "rename" in scan.skipped["a+b"]


def test_an_empty_registry(tmp_path: Path) -> None:
    assert scan_registry(Store(str(tmp_path / "nothing"))).experts == ()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "adapter_model.bin"])
def test_a_pickle_is_skipped_and_said(tmp_path: Path, file: str) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / file).write_bytes(b"\x80\x04.")
    scan = scan_registry(Store(str(tmp_path)))
    assert scan.experts == ()
    assert ".bin" in scan.skipped["pickled"]


def test_the_same_on_another_kind_of_store(tmp_path: Path) -> None:
    import fsspec

    add_expert(tmp_path, "a")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path) + "/", "/registry-test/", recursive=True)
    try:
        scan = scan_registry(Store("memory://registry-test"))
        assert [(expert.name, expert.uri) for expert in scan.experts] == [("a", "memory://registry-test/a")]
    finally:
        memory.rm("/registry-test", recursive=True)
