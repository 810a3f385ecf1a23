"""What the benchmark compares with and reads: the published algorithm, recipes, models, headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eigenmerge.core.planning.model_shapes import ModelShape, find_shape
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe

from .cases.merges import fresh_home
from .programs.headers import stored_tensors, write_checkpoint
from .programs.one_layer import merge_layer
from .workplace import recipe_text

SMALL = {
    "vocab_size": 256, "hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 2, "n_routed_experts": 4, "first_k_dense_replace": 1,
    "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize("shape", [(96, 40), (40, 64)])
def test_the_published_algorithm_gives_the_same_delta(shape: tuple[int, int]) -> None:
    """Both in float32: 1e-4 is 1e3 times its rounding, and a wrong rank or filter changes percents."""
    generator = torch.Generator().manual_seed(0)
    experts = [torch.randn(shape, generator=generator).mul_(1e-3) for _ in range(5)]
    published, ours = (merge_layer(name, experts) for name in ("published", "eigenmerge"))
    assert (published - ours).norm() < 1e-4 * ours.norm()
    assert (published - sum(experts)).norm() > 0.1 * ours.norm(), "the filter has an effect"


def test_the_mixture_has_ninety_thousand_tensors() -> None:
    tensors = stored_tensors(find_shape("deepseek-v3"))
    assert len(tensors) == 90_427
    weights = sum(torch.Size(size).numel() for name, (_, size) in tensors.items() if not name.endswith("_scale_inv"))
    assert weights == pytest.approx(671e9, rel=0.001)


def test_checkpoints_of_headers_are_planned_and_take_no_space(tmp_path: Path) -> None:
    shape = ModelShape("small", {**find_shape("deepseek-v3").config, **SMALL})
    names = [str(tmp_path / f"model{index}") for index in range(3)]
    (count,) = {write_checkpoint(Path(name), shape, num_files=3) for name in names}
    plan = make_plan(read_recipe({"merge_method": "swudi_a", "base_model": names[0], "models": names[1:]}))
    assert plan.num_tensors == len(shape.tensors()) < count
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 9
    assert sum(file.stat().st_blocks * 512 for file in files) < sum(file.stat().st_size for file in files) / 2


def test_both_tools_read_the_recipe(tmp_path: Path) -> None:
    recipe = json.loads(recipe_text(tmp_path, "ties", 2))
    assert recipe["models"][1] == {"model": f"{tmp_path}/expert1", "parameters": {"weight": 0.4, "density": 0.3}}
    assert recipe["base_model"] == f"{tmp_path}/base" and len(recipe) == 4
    assert "base_model" not in recipe_text(tmp_path, "linear", 2)


def test_a_fresh_home_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    environment = fresh_home({"HOME": "/old", "PREFECT_API_URL": "http://old", "PATH": "/bin"}, tmp_path)
    assert environment["PATH"] == "/bin" and environment["HOME"] == str(tmp_path)
    assert "old" not in str(environment)
