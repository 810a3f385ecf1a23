"""Whole merges of models that are stored in different precisions: float64, and experts coarser than the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.numerics.tensor_level import merge_task_vectors

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1}
Save = Callable[..., Path]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def recipe(method: str, base: Path, experts: list[Path], **keys: Any) -> dict[str, Any]:
    models = [{"model": str(expert)} for expert in experts]
    return {"merge_method": method, "base_model": str(base), "models": models, **keys}


def manifest_rows(out: Path) -> dict[str, Any]:
    manifest = json.loads((out / "eigenmerge_manifest.json").read_text())
    return {row["name"]: row for row in manifest["tensors"]}


class TestFloat64:
    @pytest.mark.parametrize("method", ["average", "swudi_a", "ties", "linear", "tsv_m"])
    def test_tiny_differences_survive(
        self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any], method: str
    ) -> None:
        base = draw(0, 32, 32, dtype=torch.float64)
        deltas = [1e-10 * draw(seed, 32, 32, dtype=torch.float64) for seed in (1, 2)]
        places = [
            save_model(tmp_path / name, {Q: weight}, CONFIG)
            for name, weight in (("base", base), ("e1", base + deltas[0]), ("e2", base + deltas[1]))
        ]
        result = pipeline(recipe(method, places[0], places[1:]), tmp_path / "out")
        found = load_file(tmp_path / "out/model.safetensors")[Q]
        exact = merge_task_vectors([1e10 * delta for delta in deltas], method, base=base.new_zeros(32, 32))
        assert found.dtype == torch.float64
        error = ((found - base) * 1e10 - exact).norm() / exact.norm()
        assert error < 1e-4  # the stored base + 1e-10 has 6 digits of the difference
        assert not [warning for warning in result.warnings if "F64" in warning]
        assert manifest_rows(tmp_path / "out")[Q]["arithmetic"] == "float64"

    def test_only_the_tensors_with_float64_inputs(
        self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any]
    ) -> None:
        base = {Q: draw(0, 32, 32), NORM: torch.ones(32)}
        expert = {Q: base[Q].double() + 1e-9 * draw(1, 32, 32, dtype=torch.float64), NORM: 1.1 * base[NORM]}
        places = [save_model(tmp_path / "base", base, CONFIG), save_model(tmp_path / "e", expert, CONFIG)]
        pipeline(recipe("average", places[0], places[1:], out_dtype="float64"), tmp_path / "out")
        found = load_file(tmp_path / "out/model.safetensors")
        assert torch.equal(found[Q], base[Q].double() + (expert[Q] - base[Q].double()))
        rows = manifest_rows(tmp_path / "out")
        assert rows[Q]["arithmetic"] == "float64" and "arithmetic" not in rows[NORM]

    def test_a_float64_base_and_float32_experts(
        self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any]
    ) -> None:
        base = draw(0, 32, 32, dtype=torch.float64)
        places = [save_model(tmp_path / "base", {Q: base}, CONFIG)]
        same = base.float()
        places.append(save_model(tmp_path / "e", {Q: same}, CONFIG))
        pipeline(recipe("swudi", places[0], places[1:]), tmp_path / "out")
        assert torch.equal(load_file(tmp_path / "out/model.safetensors")[Q], base)

    def test_chosen_float32_is_said(self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any]) -> None:
        base = draw(0, 32, 32, dtype=torch.float64)
        places = [save_model(tmp_path / name, {Q: base + offset}, CONFIG) for name, offset in (("b", 0), ("e", 1))]
        store = tmp_path / "store"
        chosen = pipeline(recipe("swudi", places[0], places[1:], arithmetic="float32"), tmp_path / "out32", store=store)
        assert any("arithmetic: float32" in warning for warning in chosen.warnings)
        again = pipeline(recipe("swudi", places[0], places[1:]), tmp_path / "out64", store=store)
        assert again.shards_reused == 0 and again.decompositions_reused == 0


class TestRoundedExperts:
    @pytest.mark.parametrize("method", ["iso_c", "swudi_a", "swudi", "ties", "average", "tsv_m", "model_stock"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_an_expert_that_did_not_move_adds_nothing(
        self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any], dtype: torch.dtype, method: str
    ) -> None:
        base = {Q: 0.1 * draw(0, 32, 32), NORM: 1 + 0.1 * draw(5, 32)}
        rounded = {name: weight.to(dtype) for name, weight in base.items()}
        places = [save_model(tmp_path / "base", base, CONFIG)]
        places += [save_model(tmp_path / name, rounded, CONFIG) for name in ("e1", "e2")]
        result = pipeline(recipe(method, places[0], places[1:]), tmp_path / "out")
        found = load_file(tmp_path / "out/model.safetensors")
        assert all(torch.equal(found[name], weight) for name, weight in base.items())
        assert any("counts as unchanged" in warning for warning in result.warnings)

    def test_the_other_expert_alone_decides(
        self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any]
    ) -> None:
        base = 0.1 * draw(0, 64, 64)
        moved = (base + 0.1 * draw(1, 64, 64)).bfloat16()
        places = [save_model(tmp_path / "base", {Q: base}, CONFIG)]
        places.append(save_model(tmp_path / "e1", {Q: base.bfloat16()}, CONFIG))
        places.append(save_model(tmp_path / "e2", {Q: moved}, CONFIG))
        pipeline(recipe("iso_c", places[0], places[1:]), tmp_path / "out")
        delta = torch.where(base.bfloat16() == moved, torch.zeros(()), moved.float() - base)
        expected = base + merge_task_vectors([torch.zeros_like(delta), delta], "iso_c")
        torch.testing.assert_close(load_file(tmp_path / "out/model.safetensors")[Q], expected)

    def test_a_rounded_base_keeps_exact_deltas(
        self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any]
    ) -> None:
        """A float32 expert of a bfloat16 base: the difference is exact, whatever its size."""
        base = (0.1 * draw(0, 32, 32)).bfloat16()
        expert = base.float() + 1e-6 * draw(1, 32, 32)
        places = [save_model(tmp_path / "b", {Q: base}, CONFIG), save_model(tmp_path / "e", {Q: expert}, CONFIG)]
        result = pipeline(recipe("average", places[0], places[1:], out_dtype="float32"), tmp_path / "out")
        torch.testing.assert_close(load_file(tmp_path / "out/model.safetensors")[Q], expert, rtol=0, atol=1e-8)
        assert not any("counts as unchanged" in warning for warning in result.warnings)

    @pytest.mark.parametrize("blocks", [True, False])
    def test_float8_experts_of_a_float32_base(
        self, tmp_path: Path, save_model: Save, pipeline: Callable[..., Any], blocks: bool
    ) -> None:
        base = 0.1 * draw(0, 256, 130)
        if blocks:
            padded = torch.zeros(256, 256)
            padded[:, :130] = base
            scale = padded.reshape(2, 128, 2, 128).abs().amax(dim=(1, 3)) / 448
            spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:, :130]
            name = Q + "_scale_inv"
        else:
            scale = base.abs().amax(dim=1, keepdim=True) / 448
            spread, name = scale.expand_as(base), Q + "_scale"
        stored = {Q: (base / spread).to(torch.float8_e4m3fn), name: scale}
        config = {**CONFIG, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
        places = [save_model(tmp_path / "b", {Q: base}, CONFIG), save_model(tmp_path / "e", stored, config)]
        pipeline(recipe("swudi_a", places[0], places[1:]), tmp_path / "out")
        assert torch.equal(load_file(tmp_path / "out/model.safetensors")[Q], base)
