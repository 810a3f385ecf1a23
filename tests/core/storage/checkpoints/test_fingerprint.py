"""Fingerprints: equal for equal weights anywhere, different for every other file, whatever its size and times."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.listing import FileVersion
from eigenmerge.core.storage.checkpoints import fingerprint
from eigenmerge.core.storage.checkpoints.fingerprint import (
    FingerprintKind,
    fingerprint_adapted_model,
    fingerprint_adapter,
    fingerprint_file,
    fingerprint_model,
    hashes_all_bytes,
)
from eigenmerge.core.storage.checkpoints.list_model import list_model

MIB = 2**20


def write(folder: Path, weights: torch.Tensor, *, scale: float = 1.0) -> Path:
    """A model whose file has the same header, size and time as every other one that this writes."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"a.weight": weights, "b.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    save_file({**stored, "b.weight_scale": torch.tensor(scale)}, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", (1, 1))
    return folder


def print_of(folder: Path, kind: FingerprintKind = "sampled") -> str:
    return list_model(str(folder), fingerprint=kind).fingerprint


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the models count as small, whose bytes are all hashed, or as large, of which samples are hashed."""
    if request.param == "large":
        monkeypatch.setattr(fingerprint, "_COMPLETE_LOCAL_BYTES", 0)
    return request.param


@pytest.mark.usefixtures("size")
def test_equal_sizes_and_times_are_not_the_same_model(tmp_path: Path) -> None:
    one_entry = torch.zeros(1000, 100)
    one_entry[500, 50] = 1e-30
    models = [
        write(tmp_path / "zeros", torch.zeros(1000, 100)),
        write(tmp_path / "ones", torch.ones(1000, 100)),
        write(tmp_path / "one entry", one_entry),
        write(tmp_path / "scale", torch.zeros(1000, 100), scale=2.0),
    ]
    assert len({print_of(model) for model in models}) == len(models)


@pytest.mark.usefixtures("size")
def test_files_with_equal_times_of_change_are_not_the_same_model(tmp_path: Path) -> None:
    """`chown -R` and copies that end in one step of the clock give files the same time of change."""
    one_entry = torch.zeros(1000, 100)
    one_entry[500, 50] = 1e-30
    folders = [write(tmp_path / "zeros", torch.zeros(1000, 100)), write(tmp_path / "one entry", one_entry)]
    for _ in range(50):
        for folder in folders:
            (folder / "model.safetensors").chmod(0o644)
        if len({(folder / "model.safetensors").stat().st_ctime_ns for folder in folders}) == 1:
            break
    assert len({print_of(folder) for folder in folders}) == 2


@pytest.mark.usefixtures("size")
def test_rewriting_in_place_with_the_old_time_is_seen(tmp_path: Path) -> None:
    changed = torch.zeros(1000, 100)
    before = print_of(write(tmp_path / "m", changed))
    changed[500, 50] = 1
    source = write(tmp_path / "other", changed)
    inode = (tmp_path / "m" / "model.safetensors").stat().st_ino
    with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
        file.write((source / "model.safetensors").read_bytes())
    os.utime(tmp_path / "m" / "model.safetensors", (1, 1))
    assert (tmp_path / "m" / "model.safetensors").stat().st_ino == inode
    assert print_of(tmp_path / "m") != before


def test_a_copy_is_the_same_model(tmp_path: Path, size: str) -> None:
    original = write(tmp_path / "m", torch.randn(1000, 100))
    shutil.copytree(original, tmp_path / "copy", copy_function=shutil.copyfile)
    assert print_of(tmp_path / "copy", "content") == print_of(original, "content")
    assert (print_of(tmp_path / "copy") == print_of(original)) is (size == "small")
    (tmp_path / "copy" / "model.safetensors").rename(tmp_path / "copy" / "renamed.safetensors")
    assert print_of(tmp_path / "copy", "content") == print_of(original, "content")


@pytest.mark.usefixtures("size")
def test_two_caches_of_the_hub_have_the_same_model(tmp_path: Path) -> None:
    weights, prints = torch.randn(1000, 100), set()
    for cache in ("one", "two"):
        blob = tmp_path / cache / "blobs" / ("0123456789abcdef" * 4)
        blob.parent.mkdir(parents=True)
        (write(tmp_path / "m", weights) / "model.safetensors").rename(blob)
        snapshot = tmp_path / cache / "snapshots" / "commit"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(blob)
        prints.add(print_of(snapshot))
    assert len(prints) == 1


def test_which_models_are_hashed_completely() -> None:
    local, remote = FileVersion(600 * MIB, stat=(1, 1, 1)), FileVersion(60 * MIB, "etag")
    assert hashes_all_bytes("sampled", [local]) and not hashes_all_bytes("sampled", [local, local])
    assert hashes_all_bytes("sampled", [remote]) and not hashes_all_bytes("sampled", [remote, remote])
    assert hashes_all_bytes("content", [local] * 100)
    assert hashes_all_bytes("sampled", [FileVersion(60 * MIB)] * 2)  # no etag


def test_samples_are_not_enough() -> None:
    local, remote = FileVersion(1, "", (1, 2, 3), "here", "samples:x"), FileVersion(1, "e", digest="samples:x")
    rewritten = FileVersion(1, "", (1, 2, 4), "here", "samples:x")
    put_again = FileVersion(1, "f", digest="samples:x")
    assert len({fingerprint_file(file, None) for file in (local, rewritten, remote, put_again)}) == 4
    moved = FileVersion(1, "", (9, 2, 3), "elsewhere", "samples:x")  # a shared disk numbers files in its own way
    assert fingerprint_file(moved, None) == fingerprint_file(local, None)
    assert fingerprint_file(local, Path("/a/m")) != fingerprint_file(local, Path("/b/m"))  # one `chown` of both
    assert fingerprint_file(remote, None, "https://x/a") != fingerprint_file(remote, None, "https://x/b")
    assert fingerprint_file(FileVersion(1, "e", digest="sha256:x"), None) == "x"


def test_a_model_is_its_files_in_any_order() -> None:
    assert fingerprint_model(["1", "2"]) == fingerprint_model(["2", "1"])
    assert fingerprint_model(["1", "2"]) != fingerprint_model(["1", "3"])


def test_the_config_of_an_adapter_counts() -> None:
    assert fingerprint_adapter("w", {"r": 2, "lora_alpha": 4}) == fingerprint_adapter("w", {"lora_alpha": 4, "r": 2})
    assert fingerprint_adapter("w", {"lora_alpha": 4}) != fingerprint_adapter("w", {"lora_alpha": 8})
    assert fingerprint_adapted_model("m", "a") != fingerprint_adapted_model("a", "m")
