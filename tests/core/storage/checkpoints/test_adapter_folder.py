"""Which directories are adapters, and what is said of the other files in them. Only names matter here."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.storage.checkpoints.adapter_folder import find_adapter
from eigenmerge.core.storage.checkpoints.folder import open_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = [CONFIG, WEIGHTS]
TRAINING = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json"]


def find(path: Path, *names: str, file: str = "") -> tuple[str, tuple[str, ...]] | None:
    for name in names:
        (path / name).write_bytes(b"x")
    found = find_adapter(open_folder(str(path / file) if file else str(path), None))
    return (found.weights, found.unused) if found is not None else None


@pytest.mark.parametrize(
    ("names", "unused"),
    [
        (ADAPTER, ()),
        ([*ADAPTER, "value_head.safetensors"], ("value_head.safetensors",)),
        ([*ADAPTER, "new_embeddings.safetensors", "tokenizer.json"], ("new_embeddings.safetensors",)),
        ([*ADAPTER, "config.json", *TRAINING, "optimizer.safetensors", "adapter_model.bin"], ()),
        ([*ADAPTER, "pytorch_model.bin", "value_head.bin"], ("pytorch_model.bin", "value_head.bin")),
        ([*ADAPTER, "a.safetensors", "b.safetensors"], ("a.safetensors", "b.safetensors")),
    ],
)
def test_an_adapter_beside_other_files(tmp_path: Path, names: list[str], unused: tuple[str, ...]) -> None:
    assert find(tmp_path, *names) == (WEIGHTS, unused)


def test_an_adapter_of_mlx_without_its_earlier_steps(tmp_path: Path) -> None:
    names = ["adapters.safetensors", "0000100_adapters.safetensors", "0000200_adapters.safetensors"]
    assert find(tmp_path, CONFIG, *names) == ("adapters.safetensors", ())


@pytest.mark.parametrize("names", [["model.safetensors"], ["model.safetensors", CONFIG], [WEIGHTS], ["x.safetensors"]])
def test_no_adapter(tmp_path: Path, names: list[str]) -> None:
    assert find(tmp_path, *names) is None


@pytest.mark.parametrize(
    "full", ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
)
def test_an_adapter_beside_a_full_model_is_named_by_its_file(tmp_path: Path, full: str) -> None:
    with pytest.raises(CheckpointError, match=rf"has a full model \({full}\) and an adapter .*name the file to use"):
        find(tmp_path, *ADAPTER, full)
    assert find(tmp_path, file=WEIGHTS) == (WEIGHTS, ())
    if full.endswith(".safetensors"):
        assert find(tmp_path, file=full) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([CONFIG, "adapter_model.bin"], "adapter_model.bin is a pickle"),
        ([CONFIG, "adapter_model.bin", "value_head.safetensors"], "adapter_model.bin is a pickle"),
        ([CONFIG, "value_head.safetensors"], "has adapter_config.json and no adapter_model.safetensors"),
        ([CONFIG, "adapters.npz"], "adapters.npz is not read"),
        ([*ADAPTER, "adapters.safetensors"], "has two adapters"),
        ([*ADAPTER, "non_lora_trainables.bin"], "is a pickle with weights that belong to the adapter"),
    ],
)
def test_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        find(tmp_path, *names)
    assert "\n" not in str(caught.value)
