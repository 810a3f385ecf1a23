"""Identity of models in whole merges: the store never gives one model's result for another, and what is read is what
was planned. The merges run in this process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save, save_file

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.run import Run
from eigenmerge.core.steps.listener import Listener
from eigenmerge.core.storage.store import Store

from ..conftest import S3Root

Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
SIZE = 16


def save_weights(folder: Path, value: float, config: bool = True) -> Path:
    """A model of two matrices, whose file has the size and time of every other one."""
    folder.mkdir(parents=True, exist_ok=True)
    eye = value * torch.eye(SIZE)
    save_file({Q: eye, K: 2 * eye}, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", (1, 1))
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


def save_adapter(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "base_model.model." + Q.removesuffix(".weight")
    factors = {f"{prefix}.lora_A.weight": torch.ones(1, SIZE), f"{prefix}.lora_B.weight": value * torch.ones(SIZE, 1)}
    save_file(factors, folder / "adapter_model.safetensors")
    os.utime(folder / "adapter_model.safetensors", (1, 1))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    return folder


def recipe_of(base: str | Path, *experts: str | Path, method: str = "swudi", **keys: Any) -> dict[str, Any]:
    models = [{"model": str(expert)} for expert in experts]
    return {"merge_method": method, "base_model": str(base), "models": models, **keys}


def merged(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[Q]


class TestOneStore:
    """Several merges with one store give what each gives with a store of its own."""

    @pytest.mark.parametrize(("method", "keep_sums"), [("average", False), ("ties", False), ("swudi", True)])
    def test_models_with_equal_sizes_and_times(
        self, tmp_path: Path, pipeline: Callable[..., Any], method: str, keep_sums: bool
    ) -> None:
        base = save_weights(tmp_path / "base", 0.0)
        one, two, three = (save_weights(tmp_path / str(value), float(value)) for value in (1, -1, 3))
        for number, experts in enumerate(((one,), (two,), (one, three), (two, three))):
            recipe = recipe_of(base, *experts, method=method, keep_sums=keep_sums)
            pipeline(recipe, tmp_path / f"shared{number}", tmp_path / "store")
            pipeline(recipe, tmp_path / f"own{number}", tmp_path / f"store{number}")
            assert torch.equal(merged(tmp_path / f"shared{number}"), merged(tmp_path / f"own{number}"))

    def test_adapters_with_equal_sizes_and_times(self, tmp_path: Path, pipeline: Callable[..., Any]) -> None:
        base = save_weights(tmp_path / "base", 0.0)
        for value in (1.0, -1.0):
            adapter = save_adapter(tmp_path / f"adapter{value}", value)
            pipeline(recipe_of(base, adapter, method="average"), tmp_path / f"out{value}", tmp_path / "store")
            assert torch.equal(merged(tmp_path / f"out{value}"), value * torch.ones(SIZE, SIZE))

    def test_a_copy_resumes_from_the_same_store(self, tmp_path: Path, pipeline: Callable[..., Any]) -> None:
        models = [save_weights(tmp_path / "here" / name, value) for name, value in (("b", 0.0), ("e", 1.0), ("f", 3.0))]
        models.append(save_adapter(tmp_path / "here" / "a", 2.0))
        first = pipeline(recipe_of(*models), tmp_path / "out", tmp_path / "store")
        shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
        copies = [tmp_path / "there" / model.name for model in models]
        second = pipeline(recipe_of(copies[0], *reversed(copies[1:])), tmp_path / "again", tmp_path / "store")
        assert (second.shards_done, second.shards_reused, second.bytes_read) == (0, first.shards_done, 0)
        assert torch.equal(merged(tmp_path / "again"), merged(tmp_path / "out"))


class ReplacedWhen(Listener):
    """Changes a file of the input when the plan is made, or when the first tensor or shard is done."""

    def __init__(self, event: str, change: Callable[[], None]) -> None:
        self._event, self._change = event, change

    def _at(self, event: str) -> None:
        if event == self._event:
            self._event = ""
            self._change()

    def planned(self, run: Run, workers: int) -> None:
        self._at("planned")

    def tensor_done(self, name: str, bytes_read: int) -> None:
        self._at("tensor")

    def assembling(self, run: Run) -> None:
        self._at("assembling")


def by_mv(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, (1, 1))
    other.replace(path)


def by_cp_p(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, (1, 1))


def by_truncation(path: Path, content: bytes) -> None:
    os.truncate(path, path.stat().st_size - SIZE * SIZE * 4 - 100)


def committed(store: Store) -> set[str]:
    """Return the objects that another run would use."""
    return {info.key for info in store.list("") if info.key.startswith(("spectra/", "sums/", "parts/"))}


class TestReplacedDuringTheRun:
    @pytest.mark.parametrize("change", [by_mv, by_cp_p, by_truncation])
    @pytest.mark.parametrize("event", ["planned", "tensor"])
    @pytest.mark.parametrize("which", ["base", "e1"])
    def test_on_a_local_disk(
        self, tmp_path: Path, pipeline: Callable[..., Any], change: Callable[..., None], event: str, which: str
    ) -> None:
        models = [save_weights(tmp_path / "base", 0.0), save_weights(tmp_path / "e1", 1.0)]
        path, other = tmp_path / which / "model.safetensors", save_weights(tmp_path / "new", 5.0) / "model.safetensors"
        self.check_local(tmp_path, pipeline, recipe_of(*models, keep_sums=True), event, path, other, change)

    @pytest.mark.parametrize("change", [by_mv, by_cp_p])
    def test_an_adapter(self, tmp_path: Path, pipeline: Callable[..., Any], change: Callable[..., None]) -> None:
        models = [save_weights(tmp_path / "base", 0.0), save_adapter(tmp_path / "adapter", 1.0)]
        folders = models[1], save_adapter(tmp_path / "new", 5.0)
        path, other = (folder / "adapter_model.safetensors" for folder in folders)
        self.check_local(tmp_path, pipeline, recipe_of(*models), "planned", path, other, change)

    def check_local(
        self,
        tmp_path: Path,
        pipeline: Callable[..., Any],
        recipe: dict[str, Any],
        event: str,
        path: Path,
        other: Path,
        change: Callable[[Path, bytes], None],
    ) -> None:
        listener = ReplacedWhen(event, lambda: change(path, other.read_bytes()))
        with pytest.raises(CheckpointError, match="has changed since the plan was made") as caught:
            pipeline(recipe, tmp_path / "out", tmp_path / "store", listeners=[listener])
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        by_mv(path, other.read_bytes())
        pipeline(recipe, tmp_path / "again", tmp_path / "store")
        pipeline(recipe, tmp_path / "clean", tmp_path / "new store")
        assert torch.equal(merged(tmp_path / "again"), merged(tmp_path / "clean"))
        assert committed(Store(str(tmp_path / "new store"))) <= committed(Store(str(tmp_path / "store")))

    def test_a_tokenizer_before_it_is_copied(self, tmp_path: Path, pipeline: Callable[..., Any]) -> None:
        base, expert = save_weights(tmp_path / "base", 0.0), save_weights(tmp_path / "e1", 1.0)
        (base / "vocab.txt").write_text("one")
        listener = ReplacedWhen("assembling", lambda: by_cp_p(base / "vocab.txt", b"two"))
        with pytest.raises(CheckpointError, match=r"vocab\.txt has changed since the plan"):
            pipeline(recipe_of(base, expert), tmp_path / "out", listeners=[listener])
        done = pipeline(recipe_of(base, expert), tmp_path / "out")
        assert done.shards_done == 0 and (tmp_path / "out" / "vocab.txt").read_text() == "two"

    def test_equal_content_does_not_end_the_run(self, tmp_path: Path, pipeline: Callable[..., Any]) -> None:
        base, expert = save_weights(tmp_path / "base", 0.0), save_weights(tmp_path / "e1", 1.0)
        path = expert / "model.safetensors"
        listener = ReplacedWhen("planned", lambda: by_mv(path, path.read_bytes()))
        assert pipeline(recipe_of(base, expert), tmp_path / "out", listeners=[listener]).shards_done

    @pytest.mark.parametrize("event", ["planned", "tensor"])
    def test_on_s3(self, tmp_path: Path, pipeline: Callable[..., Any], s3_root: S3Root, event: str) -> None:
        self.check_remote(tmp_path, pipeline, Store(s3_root.uri, s3_root.storage_options), event)

    def test_in_memory(self, tmp_path: Path, pipeline: Callable[..., Any]) -> None:
        self.check_remote(tmp_path, pipeline, Store(f"memory://{tmp_path.name}"), "planned")

    def check_remote(self, tmp_path: Path, pipeline: Callable[..., Any], place: Store, event: str) -> None:
        def content(value: float) -> bytes:
            return save({Q: value * torch.eye(SIZE), K: 2 * value * torch.eye(SIZE)})

        for name, value in (("base", 0.0), ("e1", 1.0)):
            place.write(f"{name}/model.safetensors", content(value))
        uris = [f"{place.root_uri}/base", f"{place.root_uri}/e1"]
        recipe = tmp_path / "recipe.yml"
        recipe.write_text(yaml.safe_dump(recipe_of(*uris, storage_options=dict(place._options))))
        store = tmp_path / "store"
        listener = ReplacedWhen(event, lambda: place.write("e1/model.safetensors", content(5.0)))
        with pytest.raises(CheckpointError, match=r"e1/model\.safetensors has changed since the plan was made"):
            pipeline(recipe, tmp_path / "out", store, listeners=[listener])
        pipeline(recipe, tmp_path / "again", store)
        pipeline(recipe, tmp_path / "clean", tmp_path / "new store")
        assert torch.equal(merged(tmp_path / "again"), merged(tmp_path / "clean"))


class TestUnfinishedMerges:
    def test_they_are_no_input(self, tmp_path: Path, pipeline: Callable[..., Any]) -> None:
        base, expert = save_weights(tmp_path / "base", 0.0), save_weights(tmp_path / "e1", 1.0)
        (base / "vocab.txt").write_text("one")
        listener = ReplacedWhen("assembling", (base / "vocab.txt").unlink)
        with pytest.raises(CheckpointError, match="changed"):
            pipeline(recipe_of(base, expert), tmp_path / "half", listeners=[listener])
        assert (tmp_path / "half" / "model.safetensors").exists()
        half = tmp_path / "half"
        for recipe in (
            recipe_of(half, expert),
            recipe_of(base, half),
            recipe_of(base, f"{half}/model.safetensors"),
            recipe_of(base, expert, tokenizer_source=str(half)),
            recipe_of(base, f"{half}+{save_adapter(tmp_path / 'adapter', 1.0)}"),
        ):
            with pytest.raises(CheckpointError, match="holds an unfinished merge"):
                pipeline(recipe, tmp_path / "out")
