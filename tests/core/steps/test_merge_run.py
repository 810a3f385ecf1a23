"""A real merge from headers to a checkpoint that loads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.errors import DestinationError

Load = Callable[[Path], dict[str, torch.Tensor]]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def deltas(models: Any, name: str) -> list[torch.Tensor]:
    return [expert[name] - models.base_tensors[name] for expert in models.expert_tensors]


def test_every_tensor_is_what_the_tensor_level_call_gives(
    models: Any, pipeline: Any, tmp_path: Path, load_checkpoint: Load
) -> None:
    recipe = models.write_recipe("swudi", parameters={"exp_time": 300, "rank_ratio": 0.65, "scale": 0.5})
    result = pipeline(recipe, tmp_path / "out", store=str(tmp_path / "store"))
    merged = load_checkpoint(tmp_path / "out")
    assert set(merged) == set(models.base_tensors)
    for name, base in models.base_tensors.items():
        if base.ndim == 2 and "embed" not in name and "lm_head" not in name:
            delta = merge_task_vectors(deltas(models, name), method="swudi", exp_time=300, rank_ratio=0.65, scale=0.5)
        else:
            delta = 0.5 * torch.stack(deltas(models, name)).mean(0)
        torch.testing.assert_close(merged[name], base + delta, rtol=1e-5, atol=1e-7)
    assert result.num_tensors == len(merged)
    assert result.decompositions_computed == sum(".proj" in n or "_proj" in n for n in merged)


def test_what_comes_out(models: Any, pipeline: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pipeline(models.write_recipe("swudi_a", dtype="bfloat16"), out, store=str(tmp_path / "store"))
    manifest = json.loads((out / "eigenmerge_manifest.json").read_text())
    for file in manifest["files"]:
        assert file["sha256"] == hashlib.sha256((out / file["name"]).read_bytes()).hexdigest()
    for name, digest in manifest["side_files"].items():
        assert digest == hashlib.sha256((out / name).read_bytes()).hexdigest()
    ranks = {row["name"]: row["rank"] for row in manifest["tensors"] if "rank" in row}
    assert ranks[Q_PROJ] > 0
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (out / "tokenizer.json").exists()
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "swudi_a" in card and str(models.experts[1]) in card
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor(Q_PROJ).dtype == torch.bfloat16
    assert not list(out.glob(".*")), "nothing of ours is left beside the checkpoint"


def test_other_parameters_decompose_nothing(models: Any, pipeline: Any, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first = pipeline(models.write_recipe("swudi", parameters={"exp_time": 300}), tmp_path / "a", store=store)
    assert first.decompositions_computed == 21 and first.decompositions_reused == 0
    for number, (method, parameters) in enumerate(
        [("swudi", {"exp_time": 1300, "rank_ratio": 0.5}), ("swudi_a", {"rank_rule": "entropy"}), ("swudi_soft", {})]
    ):
        again = pipeline(models.write_recipe(method, parameters=parameters), tmp_path / f"b{number}", store=store)
        assert (again.decompositions_computed, again.decompositions_reused) == (0, 21)
        assert again.bytes_read < first.bytes_read


def test_a_finished_store_gives_the_same_bytes_without_reading(models: Any, pipeline: Any, tmp_path: Path) -> None:
    recipe, store = models.write_recipe("swudi_a"), str(tmp_path / "store")
    first = pipeline(recipe, tmp_path / "a", store=store)
    second = pipeline(recipe, tmp_path / "b", store=store)
    assert second.shards_done == 0 and second.shards_reused == first.shards_done
    assert second.bytes_read == 0 and second.decompositions_computed == 0
    for name in ("model.safetensors", "eigenmerge_manifest.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "swap"])
@pytest.mark.parametrize("kind", ["spectra", "parts", "records"])
def test_damaged_objects_are_found_and_made_again(
    models: Any, pipeline: Any, tmp_path: Path, damage: str, kind: str
) -> None:
    recipe, store = models.write_recipe("swudi_a"), tmp_path / "store"
    pipeline(recipe, tmp_path / "a", store=str(store))
    pattern = {"spectra": "spectra/**/*.arrow", "parts": "parts/*.safetensors", "records": "parts/*.json"}[kind]
    victims = sorted(store.glob(pattern))
    contents = [path.read_bytes() for path in victims]
    for index, path in enumerate(victims):
        content = contents[index]
        middle = len(content) * 3 // 4
        path.write_bytes(
            {
                "truncate": content[:middle],
                "flip": content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :],
                "empty": b"",
                "swap": contents[(index + 1) % len(contents)],
            }[damage]
        )
    if kind == "spectra":  # parts are found before spectra are looked at
        for path in store.glob("parts/*"):
            path.unlink()
    result = pipeline(recipe, tmp_path / "b", store=str(store))
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/eigenmerge_manifest.json").read_bytes() == (
        tmp_path / "b/eigenmerge_manifest.json"
    ).read_bytes()
    assert result.shards_done > 0 and any("again" in warning for warning in result.warnings)
    if kind == "spectra":
        assert result.decompositions_computed == 21


def test_several_files_and_the_index(models: Any, pipeline: Any, tmp_path: Path, load_checkpoint: Load) -> None:
    recipe = models.write_recipe("average", output={"max_shard_size": "40KB"})
    result = pipeline(recipe, tmp_path / "out", store=str(tmp_path / "store"))
    assert len(result.files) > 2
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, framework="pt") as opened:
            assert name in opened.keys()  # noqa: SIM118  (not a mapping)
    merged = load_checkpoint(tmp_path / "out")
    assert set(index["weight_map"]) == set(merged)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in merged.values())
    expected = models.base_tensors[Q_PROJ] + torch.stack(deltas(models, Q_PROJ)).mean(0)
    torch.testing.assert_close(merged[Q_PROJ], expected, rtol=1e-6, atol=1e-7)


def test_a_destination_that_is_not_empty_is_refused(models: Any, pipeline: Any, tmp_path: Path) -> None:
    out, store = tmp_path / "out", str(tmp_path / "store")
    many = models.write_recipe("average", output={"max_shard_size": "40KB"})
    pipeline(many, out, store=store)
    assert pipeline(many, out, store=store).already_complete
    one = models.write_recipe("average", "one.yml")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DestinationError, match="not empty"):
        pipeline(one, out, store=store)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    pipeline(one, out, store=store, overwrite=True)
    left = {path.name for path in out.iterdir()}
    assert "model.safetensors" in left and not any("of-" in name or "index" in name for name in left)


@pytest.mark.parametrize("place", ["base", "expert1", "base/merged", "."])
def test_a_destination_among_the_inputs_is_refused(models: Any, pipeline: Any, tmp_path: Path, place: str) -> None:
    with pytest.raises(DestinationError, match="input model"):
        pipeline(models.write_recipe("average"), models.root / place, store=str(tmp_path / "store"), overwrite=True)


def test_svc_on_top_is_kept_too(models: Any, pipeline: Any, tmp_path: Path, load_checkpoint: Load) -> None:
    store = str(tmp_path / "store")
    recipe = models.write_recipe("tsv_m", calibration={"svc": {"alpha": 0.5}})
    pipeline(recipe, tmp_path / "a", store=store)
    expected = merge_task_vectors(deltas(models, Q_PROJ), method="tsv_m", calibration={"svc": {"alpha": 0.5}})
    merged = load_checkpoint(tmp_path / "a")[Q_PROJ]
    torch.testing.assert_close(merged, models.base_tensors[Q_PROJ] + expected, rtol=1e-4, atol=1e-6)
    again = pipeline(models.write_recipe("tsv_m", calibration={"svc": {"alpha": 0.9}}), tmp_path / "b", store=store)
    assert again.decompositions_computed == 0
