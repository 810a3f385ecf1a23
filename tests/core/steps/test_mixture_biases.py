"""Biases of a mixture's experts in several forms give the same merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
E, INNER, HIDDEN = 3, 4, 6
LAYER = "model.layers.0"
SIZES = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}


def single(seed: int, module: str = "mlp", names: tuple[str, ...] = tuple(SIZES)) -> Tensors:
    """One tensor for each expert."""
    generator = torch.Generator().manual_seed(seed)
    found = {f"{LAYER}.{module}.router.weight": torch.randn(E, HIDDEN, generator=generator)}
    for expert in range(E):
        for name, shape in zip(names, SIZES.values(), strict=True):
            place = f"{LAYER}.{module}.experts.{expert}.{name}"
            found[f"{place}.weight"] = torch.randn(shape, generator=generator)
            found[f"{place}.bias"] = torch.randn(shape[:1], generator=generator)
    return found


def renamed(seed: int) -> Tensors:
    return single(seed, "block_sparse_moe", ("w1", "w3", "w2"))


def stacked(seed: int) -> Tensors:
    """(experts, out, in); gate and up one after the other."""
    one, place = single(seed), f"{LAYER}.mlp.experts"

    def stack(name: str, kind: str) -> torch.Tensor:
        return torch.stack([one[f"{place}.{expert}.{name}.{kind}"] for expert in range(E)])

    return {
        f"{LAYER}.mlp.router.weight": one[f"{LAYER}.mlp.router.weight"],
        f"{place}.gate_up_proj": torch.cat([stack("gate_proj", "weight"), stack("up_proj", "weight")], 1),
        f"{place}.gate_up_proj_bias": torch.cat([stack("gate_proj", "bias"), stack("up_proj", "bias")], 1),
        f"{place}.down_proj": stack("down_proj", "weight"),
        f"{place}.down_proj_bias": stack("down_proj", "bias"),
    }


def gpt_oss(seed: int) -> Tensors:
    """(experts, in, out); gate and up in turn."""
    found = stacked(seed)
    for name, value in found.items():
        if "gate_up" in name:
            found[name] = torch.stack(value.chunk(2, 1), 2).flatten(1, 2)
        if value.ndim == 3:
            found[name] = found[name].transpose(1, 2).contiguous()
    return found


FORMS = {"single": (single, "x"), "renamed": (renamed, "x"), "stacked": (stacked, "x"), "gpt_oss": (gpt_oss, "gpt_oss")}


def merge(folder: Path, pipeline: Any, save_model: Any, base: str, expert: str, **changes: Any) -> Path:
    places: list[str] = []
    for seed, form in enumerate((base, expert)):
        make, family = FORMS[form]
        tensors = make(seed)
        for name in changes.get("without", ()) if seed else ():
            del tensors[name]
        config = {"model_type": family, "num_experts": E, "hidden_size": HIDDEN}
        places.append(str(save_model(folder / f"{form}{seed}", tensors, config)))
    recipe = {"merge_method": "task_arithmetic", "base_model": places[0], "models": places[1:]}
    pipeline({**recipe, "allow_mixed_architectures": True}, folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    ("base", "expert"),
    [
        ("gpt_oss", "single"),
        ("single", "gpt_oss"),
        ("stacked", "gpt_oss"),
        ("renamed", "stacked"),
        ("single", "renamed"),
    ],
)
def test_biases_arrive_in_the_bases_form(
    tmp_path: Path, pipeline: Any, save_model: Any, load_checkpoint: Any, base: str, expert: str
) -> None:
    """With weight 1 the merge of one expert is the expert."""
    merged = load_checkpoint(merge(tmp_path, pipeline, save_model, base, expert))
    expected = FORMS[base][0](1)
    assert set(merged) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_an_expert_without_its_bias_is_named(tmp_path: Path, pipeline: Any, save_model: Any) -> None:
    without = [f"{LAYER}.mlp.experts.1.up_proj.bias"]
    with pytest.raises(CheckpointError, match=r"the bias of the up projection of expert 1 in model.layers.0.mlp is"):
        merge(tmp_path, pipeline, save_model, "gpt_oss", "single", without=without)
