"""The synthetic file system: true shapes, valid files, the same bytes for every range, and its speed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from math import prod
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load


@pytest.fixture
def fs():
    return fsspec.filesystem("synthetic", skip_instance_cache=True)


def header_of(fs, path: str) -> dict[str, dict]:
    length = int.from_bytes(fs.cat_file(path, 0, 8), "little")
    return json.loads(fs.cat_file(path, 8, 8 + length))


def test_70b_has_its_true_size_and_shapes(fs) -> None:
    index = json.loads(fs.cat_file("synthetic://llama-70b/base/model.safetensors.index.json"))
    assert index["metadata"]["total_size"] == 2 * 70_553_706_496  # parameters of Llama-3.1-70B
    shapes = {}
    for name in sorted(set(index["weight_map"].values())):
        path = f"llama-70b/base/{name}"
        header = header_of(fs, path)
        del header["__metadata__"]
        assert all(index["weight_map"][tensor] == name for tensor in header)
        shapes |= {tensor: tuple(entry["shape"]) for tensor, entry in header.items()}
        stop = max(entry["data_offsets"][1] for entry in header.values())
        header_bytes = int.from_bytes(fs.cat_file(path, 0, 8), "little")
        assert fs.size(path) == 8 + header_bytes + stop
        assert fs.size(path) < 5.1e9
    assert set(shapes) == set(index["weight_map"])
    assert shapes["model.layers.79.self_attn.k_proj.weight"] == (1024, 8192)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (8192, 28672)
    assert shapes["lm_head.weight"] == (128256, 8192)
    assert len(shapes) == 80 * 9 + 3
    assert fs.bytes_served < 2_000_000  # headers only


@pytest.mark.parametrize("member", ["base", "expert3", "lora5"])
def test_safetensors_reads_it(fs, tmp_path: Path, member: str) -> None:
    files = [path for path in fs.ls(f"llama-tiny/{member}", detail=False) if path.endswith(".safetensors")]
    local = tmp_path / "x.safetensors"
    local.write_bytes(fs.cat_file(files[0]))
    with safe_open(local, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        for name in opened.keys():  # noqa: SIM118
            tensor = opened.get_tensor(name).float()
            assert tensor.abs().min() >= 2**-9 and tensor.abs().max() < 2**-5
            assert abs(float(tensor.mean())) < 0.01


def test_transformers_loads_it(fs, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for path in fs.ls("llama-tiny/expert1", detail=False):
        (tmp_path / path.rpartition("/")[2]).write_bytes(fs.cat_file(path))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.num_hidden_layers == 4


def test_peft_loads_the_adapter(fs, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    for member in ("base", "lora0"):
        (tmp_path / member).mkdir()
        for path in fs.ls(f"llama-tiny/{member}", detail=False):
            (tmp_path / member / path.rpartition("/")[2]).write_bytes(fs.cat_file(path))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "lora0")
    stored = load((tmp_path / "lora0" / "adapter_model.safetensors").read_bytes())
    loaded = {name.replace(".default", ""): value for name, value in adapted.named_parameters() if "lora_" in name}
    assert set(loaded) == set(stored)
    assert all(bool((loaded[name] == stored[name].to(loaded[name].dtype)).all()) for name in stored)


@settings(deadline=None, max_examples=60)
@given(start=st.integers(0, 200_000), length=st.integers(0, 3000), member=st.sampled_from(["base", "expert0", "lora1"]))
def test_any_range_equals_that_part_of_the_file(start: int, length: int, member: str) -> None:
    fs = fsspec.filesystem("synthetic")
    name = "adapter_model.safetensors" if member.startswith("lora") else "model.safetensors"
    path = f"llama-tiny/{member}/{name}"
    whole = fs.cat_file(path)
    assert fs.cat_file(path, start, start + length) == whole[start : start + length]
    with fs.open(path) as opened:
        opened.seek(start)
        assert opened.read(length) == whole[start : start + length]


def test_ranges_across_chunks_and_at_the_end(fs) -> None:
    """The generator works in chunks of 256 KiB; the bytes must not depend on the positions of the chunks."""
    path = "llama-1b/expert2/model.safetensors"
    size = fs.size(path)
    whole = fs.cat_file(path, 1_000_001, 3_000_003)
    rng = random.Random(7)
    for _ in range(20):
        low = rng.randrange(1_000_001, 3_000_003)
        high = rng.randrange(low, 3_000_003)
        assert fs.cat_file(path, low, high) == whole[low - 1_000_001 : high - 1_000_001]
    assert fs.cat_file(path, -5, None) == fs.cat_file(path, size - 5, size)
    assert fs.cat_file(path, size - 5, size + 100) == fs.cat_file(path, size - 5, size)


def test_a_tensor_is_the_same_in_every_subset(fs) -> None:
    name = "model.layers.3.self_attn.v_proj.weight"

    def read(model: str) -> bytes:
        path = f"{model}/expert0/model.safetensors"
        length = int.from_bytes(fs.cat_file(path, 0, 8), "little")
        start, stop = header_of(fs, path)[name]["data_offsets"]
        return fs.cat_file(path, 8 + length + start, 8 + length + stop)

    assert read("llama-tiny") == read("llama-tiny.blocks-2-3") == read("llama-tiny.blocks-3-3.bare")


def test_experts_differ_from_the_base_a_little_and_from_each_other() -> None:
    fs = fsspec.filesystem("synthetic")
    base, first, second = (
        load(fs.cat_file(f"llama-tiny/{member}/model.safetensors")) for member in ("base", "expert0", "expert1")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    vectors = [np.asarray(expert[name].float() - base[name].float()) for expert in (first, second)]
    for vector in vectors:
        relative = np.linalg.norm(vector) / float(base[name].float().norm())
        assert 0.01 < relative < 0.05
        assert np.linalg.matrix_rank(vector) == min(vector.shape)
    cosine = np.vdot(*vectors) / prod(np.linalg.norm(v) for v in vectors)
    assert abs(cosine) < 0.1


def test_it_is_read_only_and_reports_missing_files(fs) -> None:
    assert not fs.exists("llama-71b/base")
    assert not fs.exists("llama-70b.blocks-79-80/base")
    assert not fs.exists("llama-70b/base/nothing.safetensors")
    assert fs.isdir("llama-70b/expert7") and fs.isfile("llama-70b/lora7/adapter_config.json")
    with pytest.raises(FileNotFoundError, match="nothing"):
        fs.cat_file("llama-70b/base/nothing.safetensors")
    with pytest.raises(PermissionError, match="read-only"):
        fs.open("llama-70b/base/config.json", "wb")


def test_a_process_finds_the_protocol_by_pythonpath(synthetic_environment: dict[str, str]) -> None:
    code = "import fsspec; print(fsspec.open('synthetic://llama-70b/base/config.json').open().read().decode())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=synthetic_environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["hidden_size"] == 8192


def test_generation_is_fast() -> None:
    """At least 200 MB per second of CPU time, for base and experts, so that a full layer takes seconds."""
    fs = fsspec.filesystem("synthetic")
    num_bytes = 64_000_000
    rates = []
    for member in ("base", "expert0"):
        begin = time.process_time()
        fs.cat_file(f"llama-70b/{member}/model-00002-of-00030.safetensors", 1000, 1000 + num_bytes)
        rates.append(num_bytes / (time.process_time() - begin))
    assert min(rates) > 200e6, rates
