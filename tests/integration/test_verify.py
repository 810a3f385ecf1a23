"""`eigenmerge verify`: intact checkpoints pass, and every later change is reported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.storage.store import Store

MANIFEST = "eigenmerge_manifest.json"
Command = Callable[..., Any]


@pytest.fixture
def merged(make_models: Any, pipeline: Any, tmp_path: Path) -> Path:
    """A checkpoint of several files."""
    models = make_models(num_experts=2, layers=2)
    recipe = models.write_recipe("swudi", output={"max_shard_size": "40KB"}, dtype="bfloat16")
    pipeline(recipe, tmp_path / "out", store=str(tmp_path / "store"))
    return tmp_path / "out"


def flip(path: Path, position: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("swudi_a", {"keep_sums": True}),
        ("dare_ties", {"parameters": {"density": 0.5, "weight": 0.5}}),
        ("tsv_m", {"calibration": {"svc": {"alpha": 0.5}}, "arithmetic": "float64", "spectra_dtype": "float32"}),
        ("linear", {"parameters": {"weight": 0.5}}),
    ],
)
def test_recomputed_tensors_are_identical(
    make_models: Any, pipeline: Any, command: Command, tmp_path: Path, method: str, keys: dict[str, Any]
) -> None:
    models = make_models(num_experts=2, layers=1)
    pipeline(models.write_recipe(method, **keys), tmp_path / "out", store=str(tmp_path / "store"))
    done = command("verify", "--no-load", tmp_path / "out", "--sample", "100", "--json")
    assert done.code == 0, done.out + done.err
    found = json.loads(done.out)
    assert len(found["recomputed"]) == found["num_tensors"] == len(models.base_tensors)
    assert {tensor["outcome"] for tensor in found["recomputed"]} == {"identical"}
    assert found["problems"] == found["gaps"] == []


def test_output_for_an_intact_checkpoint(merged: Path, command: Command) -> None:
    done = command("verify", "--no-load", merged)
    assert done.code == 0 and not done.err
    lines = done.out.splitlines()
    weights = sorted(path.name for path in merged.glob("*.safetensors"))
    found = [line for line in lines if line.startswith("model-")]
    assert len(found) == len(weights)
    for name, line in zip(weights, found, strict=True):
        assert line.startswith(f"{name}: ok (sha256, and sha256 of ") and line.endswith(" tensors)")
    assert sum("recomputed, identical" in line for line in lines) == 3
    assert "ok;" in lines[-1] and "3 of them recomputed" in lines[-1]
    assert "recomputed" not in command("verify", "--no-load", merged, "--sample", "0").out.replace(
        "0 of them recomputed", ""
    )


def test_damaged_files_are_named(merged: Path, command: Command) -> None:
    flip(next(merged.glob("model-00001-of-*")))
    (merged / "config.json").unlink()
    (merged / "pytorch_model.bin").write_bytes(b"x")
    done = command("verify", "--no-load", merged, "--sample", "0")
    assert done.code == 1 and not done.err
    damaged = "".join(line for line in done.out.splitlines() if line.startswith("damaged: "))
    for name in ("model-00001-of-", "tensor 'model.", "config.json", "pytorch_model.bin"):
        assert name in damaged


def test_forged_weights_with_matching_checksums(merged: Path, command: Command) -> None:
    """The sample is computed again from the experts, so matching checksums do not suffice."""
    manifest = json.loads((merged / MANIFEST).read_text())
    file = manifest["files"][0]
    path = merged / file["name"]
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for row in manifest["tensors"]:
        if row["name"] in header:
            first, last = (start + offset for offset in header[row["name"]]["data_offsets"])
            content[last - 1] ^= 0x01  # in the exponent: the last value is doubled or halved
            row["sha256"] = hashlib.sha256(content[first:last]).hexdigest()
    path.write_bytes(content)
    file["sha256"] = hashlib.sha256(content).hexdigest()
    (merged / MANIFEST).write_text(json.dumps(manifest))
    assert command("verify", "--no-load", merged, "--sample", "0").code == 0
    done = command("verify", "--no-load", merged, "--sample", "100")
    assert done.code == 1 and "differs from its recomputation" in done.out


@pytest.mark.parametrize("change", ["weights", "gone"])
def test_changed_sources_are_not_recomputed(merged: Path, command: Command, tmp_path: Path, change: str) -> None:
    expert = tmp_path / "expert1/model.safetensors"
    if change == "weights":
        flip(expert)
    else:
        expert.unlink()
    unasked = command("verify", "--no-load", merged)
    assert unasked.code == 0 and "not checked: nothing was recomputed" in unasked.out and "expert1" in unasked.out
    asked = command("verify", "--no-load", merged, "--sample", "2")
    assert asked.code == 2 and "ok;" in asked.out


def test_aligned_layers_need_the_store_of_the_run(
    make_models: Any, pipeline: Any, command: Command, tmp_path: Path
) -> None:
    """An aligned layer depends on the eigenvalues of all others, which are in a table of the store."""
    models = make_models(num_experts=2, layers=2)
    recipe = models.write_recipe("swudi", parameters={"alignment_rho": 0.5})
    pipeline(recipe, tmp_path / "out", store=str(tmp_path / "store"))
    alone = command("verify", "--no-load", tmp_path / "out", "--sample", "3")
    assert alone.code == 2 and "pass the store of the run" in alone.out
    done = command("verify", "--no-load", tmp_path / "out", "--sample", "3", "--store", tmp_path / "store")
    assert done.code == 0 and done.out.count("recomputed, identical") == 3, done.out


def test_results_of_kept_sums_are_within_tolerance(
    make_models: Any, pipeline: Any, command: Command, tmp_path: Path
) -> None:
    models = make_models(num_experts=4, layers=1)
    last = models.experts.pop()
    store = str(tmp_path / "store")
    pipeline(models.write_recipe("swudi", "three.yml", keep_sums=True), tmp_path / "three", store=store)
    models.experts.insert(0, last)
    pipeline(models.write_recipe("swudi", "four.yml", keep_sums=True), tmp_path / "four", store=store)
    found = json.loads(command("verify", "--no-load", tmp_path / "four", "--sample", "100", "--json").out)
    outcomes = {tensor["outcome"] for tensor in found["recomputed"]}
    assert outcomes <= {"identical", "within tolerance"} and found["problems"] == []


def test_adapters(make_models: Any, pipeline: Any, command: Command, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    models = make_models(num_experts=2, layers=1)
    for index, place in enumerate(models.experts):
        generator = torch.Generator().manual_seed(index)
        for path in place.iterdir():
            path.unlink()
        factors = {}
        for name, tensor in models.base_tensors.items():
            if "_proj" in name:
                stem = f"base_model.model.{name.removesuffix('.weight')}"
                factors[f"{stem}.lora_A.weight"] = torch.randn(2, tensor.shape[1], generator=generator)
                factors[f"{stem}.lora_B.weight"] = torch.randn(tensor.shape[0], 2, generator=generator)
        save_file(factors, place / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "base"}
        (place / "adapter_config.json").write_text(json.dumps(config))
    recipe = models.write_recipe("swudi", output={"format": "adapter"})
    pipeline(recipe, tmp_path / "out", store=str(tmp_path / "store"))
    done = command("verify", "--no-load", tmp_path / "out", "--sample", "100")
    assert done.code == 0 and done.out.count("recomputed, identical") == 7, done.out
    flip(tmp_path / "out/adapter_model.safetensors")
    assert command("verify", "--no-load", tmp_path / "out", "--sample", "0").code == 1


def test_on_s3_each_tensor_has_its_checksum(
    make_models: Any, pipeline: Any, command: Command, tmp_path: Path, s3_root: Any
) -> None:
    models = make_models(num_experts=2, layers=1)
    options = s3_root.storage_options
    recipe = models.write_recipe("swudi", storage_options=options)
    out = f"{s3_root.uri}/out"
    pipeline(recipe, out, store=f"{s3_root.uri}/store")
    store = Store(out, options)
    assert json.loads(store.read(MANIFEST))["files"][0]["sha256"] is None, "the server has copied the file"
    intact = command("verify", "--no-load", out, "--recipe", recipe)
    assert intact.code == 0 and "sha256 of 12 tensors" in intact.out, intact.out + intact.err
    content = bytearray(store.read("model.safetensors"))
    content[-100] ^= 1
    store.write("model.safetensors", bytes(content))
    done = command("verify", "--no-load", out, "--recipe", recipe, "--sample", "0")
    assert done.code == 1 and "tensor 'model.norm.weight' fails its sha256" in done.out


def test_a_missing_checkpoint(command: Command, tmp_path: Path) -> None:
    done = command("verify", tmp_path / "nothing")
    assert done.code == 1 and MANIFEST in done.err and "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1


def test_damaged_manifests_give_one_line(command: Command, tmp_path: Path) -> None:
    for content in (b"", b"{", b"[]", b'{"format": 1}', b'{"format": 99}', b"\xff", b"[" * 100_000):
        (tmp_path / MANIFEST).write_bytes(content)
        done = command("verify", tmp_path)
        assert done.code == 1 and len(done.err.splitlines()) == 1 and "Traceback" not in done.err, content[:20]
