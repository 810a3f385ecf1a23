"""Mistakes of users: each gives one clear line and a non-zero exit code, and leaves nothing in the destination."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def assert_refused(result: Any, *words: str, destination: Path | None = None) -> None:
    """Check for one line on standard error that contains all the words, and for no traceback."""
    assert result.code not in (0, None), result.out
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("eigenmerge: error: "), result.err
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in result.err + result.out
    if destination is not None:
        assert not destination.exists() or not [p for p in destination.iterdir() if not p.name.startswith(".")]


Save = Callable[..., Path]


def test_a_missing_base(models: Any, command: Any, tmp_path: Path) -> None:
    recipe = models.write_recipe("swudi", base_model=str(tmp_path / "nowhere"))
    assert_refused(command("merge", recipe, tmp_path / "out"), "nowhere", destination=tmp_path / "out")


def test_an_expert_of_another_shape(models: Any, command: Any, tmp_path: Path, save_model: Save) -> None:
    tensors = {**models.expert_tensors[1], Q_PROJ: torch.zeros(16, 32)}
    save_model(models.experts[1], tensors)
    assert_refused(
        command("merge", models.write_recipe(), tmp_path / "out"), Q_PROJ, "16", "32", str(models.experts[1])
    )


def header_of(tensors: dict[str, tuple[list[int], list[int]]]) -> bytes:
    content = {n: {"dtype": "F32", "shape": shape, "data_offsets": offsets} for n, (shape, offsets) in tensors.items()}
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda whole: whole[:4], "bytes"),
        (lambda whole: whole[: len(whole) // 2], "bytes"),
        (lambda whole: struct.pack("<Q", 2**60) + whole[8:], "header"),
        (lambda whole: struct.pack("<Q", 10) + b"not json!!" + whole[18:], "JSON"),
        (lambda whole: header_of({"a": ([2], [0, 8]), "b": ([2], [4, 12])}) + b"\0" * 12, "overlap"),
        (lambda whole: header_of({"a": ([9], [0, 36])}) + b"\0" * 12, "truncated"),
    ],
    ids=["four bytes", "half a file", "claims 2^60", "no JSON", "overlapping", "more than the file has"],
)  # fmt: skip
def test_a_damaged_header(models: Any, command: Any, tmp_path: Path, damage: Any, word: str) -> None:
    file = models.experts[2] / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert_refused(command("merge", models.write_recipe(), tmp_path / "out"), "model.safetensors", word)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_named(
    models: Any, command: Any, tmp_path: Path, save_model: Save, value: float, load_checkpoint: Any
) -> None:
    tensors = {name: tensor.clone() for name, tensor in models.expert_tensors[1].items()}
    tensors[Q_PROJ][3, 4:6] = value
    save_model(models.experts[1], tensors)
    recipe = models.write_recipe("swudi_a")
    result = command("merge", recipe, tmp_path / "out")
    assert_refused(
        result, str(models.experts[1]), Q_PROJ, "2 NaN or Inf", "--allow-nonfinite", destination=tmp_path / "out"
    )
    result = command("merge", recipe, tmp_path / "out", "--allow-nonfinite")
    assert result.code == 0 and Q_PROJ in result.out and "kept the base" in result.out
    assert torch.equal(load_checkpoint(tmp_path / "out")[Q_PROJ], models.base_tensors[Q_PROJ])


def test_an_expert_equal_to_the_base(
    models: Any, command: Any, tmp_path: Path, save_model: Save, load_checkpoint: Any
) -> None:
    save_model(models.experts[0], models.base_tensors)
    recipe = models.write_recipe("swudi_a")
    result = command("merge", recipe, tmp_path / "out")
    assert result.code == 0, result.err
    merged = load_checkpoint(tmp_path / "out")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())


def test_identical_experts_cause_a_warning(models: Any, command: Any, tmp_path: Path) -> None:
    content = (models.experts[0] / "model.safetensors").read_bytes()
    (models.experts[1] / "model.safetensors").write_bytes(content)
    models.experts[1] = models.experts[0]
    result = command("plan", models.write_recipe())
    assert result.code == 0 and "identical experts" in result.out


def test_a_zero_size_tensor(models: Any, command: Any, tmp_path: Path, save_model: Save, load_checkpoint: Any) -> None:
    for folder, tensors in zip(
        [models.base, *models.experts], [models.base_tensors, *models.expert_tensors], strict=True
    ):
        save_model(folder, {**tensors, "model.empty.weight": torch.zeros(0, 8)})
    result = command("merge", models.write_recipe(), tmp_path / "out")
    assert result.code == 0, result.err
    assert load_checkpoint(tmp_path / "out")["model.empty.weight"].shape == (0, 8)


def test_a_pickle_is_refused_with_advice(models: Any, command: Any) -> None:
    folder = models.experts[0]
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert_refused(command("plan", models.write_recipe()), "pytorch_model.bin", "safetensors", "weights_only=True")


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "just words\n", "", "merge_method: swudi\nmerge_method: ties\n", "a: [1\n"]
)
def test_yaml_that_is_not_a_recipe(command: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    assert_refused(command("plan", path), "recipe.yml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merge_metod": "swudi"}, ["merge_metod", "merge_method"]),
        ({"parameters": {"exp_tim": 300}}, ["exp_tim", "exp_time"]),
        ({"parameters": {"exp_time": -1}}, ["exp_time"]),
        ({"merge_method": "swudy"}, ["swudy", "swudi"]),
        ({"rules": [{"match": "model.layer.*", "action": "keep_base"}]}, ["model.layer.*"]),
        ({"output": {"max_shard_size": "fast"}}, ["max_shard_size"]),
    ],
)
def test_misspelled_recipes(models: Any, command: Any, change: dict[str, Any], words: list[str]) -> None:
    recipe = {**models.recipe("swudi"), **change}
    path = models.root / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    assert_refused(command("plan", path), *words)


def test_a_missing_recipe(command: Any, tmp_path: Path) -> None:
    assert_refused(command("plan", tmp_path / "none.yml"), "none.yml")


@pytest.mark.skipif("os.geteuid() == 0", reason="root may write anywhere")
def test_an_unwritable_store(models: Any, command: Any, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert_refused(command("merge", models.write_recipe(), tmp_path / "out", "--store", closed), "closed")


def test_a_store_below_a_file(models: Any, command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(
        command("merge", models.write_recipe(), tmp_path / "out", "--store", tmp_path / "file/store"), "file"
    )


def test_a_full_disk(models: Any, command: Any, tmp_path: Path) -> None:
    """Uses a small tmpfs, which only root may mount; /dev/full cannot contain a store."""
    import subprocess

    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        result = command("merge", models.write_recipe(), tmp_path / "out", "--store", place / "store")
        assert_refused(result, "No space left", str(place))
        result = command("merge", models.write_recipe(), place / "out", "--store", tmp_path / "store")
        assert_refused(result, "No space left", str(place))
        assert not (place / "out" / "model.safetensors").exists()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_too_little_memory(models: Any, command: Any, tmp_path: Path) -> None:
    result = command("merge", models.write_recipe(), tmp_path / "out", "--max-memory", "20KB")
    assert_refused(result, "mlp", "20", destination=tmp_path / "out")


def test_a_recipe_of_1000_experts(models: Any, command: Any) -> None:
    recipe = models.recipe("swudi_a")
    recipe["models"] = [{"model": str(models.experts[index % 3])} for index in range(1000)]
    path = models.root / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    result = command("plan", path, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["num_experts"] == 1000


def test_unknown_options(models: Any, command: Any, tmp_path: Path) -> None:
    result = command("merge", models.write_recipe(), tmp_path / "out", "--worker", "2")
    assert result.code == 2 and "--workers" in result.err
