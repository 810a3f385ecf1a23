"""Whole merges of experts in 16 and 8 bits: their rounding is no signal, in one run, in pieces and from kept sums."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.numerics.interference import top_directions
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

Q = "model.layers.0.self_attn.q_proj.weight"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1}
Save = Callable[..., Path]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Models:
    """A base in bfloat16 and three experts of rank 3 that are merged into it."""

    def __init__(self, folder: Path, save: Save) -> None:
        self.base = (0.02 * draw(0, 64, 64)).bfloat16()
        exact = [0.004 * draw(10 + i, 64, 3) @ draw(20 + i, 3, 64) for i in range(3)]
        experts = [(self.base.float() + v).bfloat16() for v in exact]
        self.exact, self.rounded = exact, [expert.float() - self.base.float() for expert in experts]
        weights = {"base": self.base, **{f"e{index}": expert for index, expert in enumerate(experts)}}
        self.places = {name: str(save(folder / name, {Q: weight}, CONFIG)) for name, weight in weights.items()}

    def recipe(self, method: str, count: int = 3, **keys: Any) -> dict[str, Any]:
        models = [{"model": self.places[f"e{index}"]} for index in range(count)]
        base = self.places["base"]
        return {"merge_method": method, "base_model": base, "models": models, "out_dtype": "float32", **keys}

    def delta(self, out: Path) -> torch.Tensor:
        return load_file(out / "model.safetensors")[Q] - self.base.float()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def row(out: Path) -> dict[str, Any]:
    (found,) = json.loads((out / "eigenmerge_manifest.json").read_text())["tensors"]
    return found


@pytest.mark.parametrize(("method", "parameters"), [("iso_c", {}), ("swudi_a", {"rank_rule": "storage_noise"})])
def test_a_run_cuts_what_the_tensor_call_cuts(
    tmp_path: Path, save_model: Save, pipeline: Callable[..., Any], method: str, parameters: dict[str, Any]
) -> None:
    models, store = Models(tmp_path, save_model), tmp_path / "store"
    wanted = merge_task_vectors(models.exact, method, **parameters)
    pipeline(models.recipe(method, parameters=parameters), tmp_path / "cut", store=store)
    same = merge_task_vectors(models.rounded, method, base=models.base.float(), stored_as=torch.bfloat16, **parameters)
    assert distance(models.delta(tmp_path / "cut"), same) < 1e-4
    assert distance(same, wanted) < 0.02
    # with another scale: from the stored spectrum, where the noise is already left out
    twice = models.recipe(method, parameters={**parameters, "scale": 2.0})
    again = pipeline(twice, tmp_path / "twice", store=store)
    assert again.decompositions_reused == 1
    assert distance(models.delta(tmp_path / "twice"), 2 * same) < 1e-4
    # the option has keys of its own
    ignored = pipeline(
        models.recipe(method, parameters=parameters, storage_noise="ignore"), tmp_path / "ignored", store=store
    )
    assert ignored.decompositions_reused == 0 and ignored.shards_reused == 0
    assert distance(models.delta(tmp_path / "ignored"), wanted) > 0.3
    assert 0.0 < row(tmp_path / "cut")["storage_noise"] < 0.1
    assert "storage_noise" not in row(tmp_path / "ignored")


def test_kept_sums_keep_the_noise(tmp_path: Path, save_model: Save, pipeline: Callable[..., Any]) -> None:
    models, store = Models(tmp_path, save_model), tmp_path / "store"
    settings = {"keep_sums": True}
    pipeline(models.recipe("wudi_pinv", 2, **settings), tmp_path / "two", store=store)
    pipeline(models.recipe("wudi_pinv", 3, **settings), tmp_path / "three", store=store)
    pipeline(models.recipe("wudi_pinv", 3), tmp_path / "fresh", store=tmp_path / "other")
    assert distance(models.delta(tmp_path / "three"), models.delta(tmp_path / "fresh")) < 1e-4
    assert row(tmp_path / "three")["rank"] == row(tmp_path / "fresh")["rank"] == 9
    assert row(tmp_path / "three")["storage_noise"] == pytest.approx(row(tmp_path / "fresh")["storage_noise"])


@pytest.mark.parametrize("method", ["average", "ties", "iso_c"])
def test_a_requantized_weight_is_frozen(
    tmp_path: Path, save_model: Save, pipeline: Callable[..., Any], method: str
) -> None:
    """Base and experts in float8 with scales of their own, and the same weight: all differences are rounding."""
    exact = 0.02 * draw(0, 64, 64)
    places: list[str] = []
    for index, factor in enumerate((1.0, 1.3, 1.6)):
        scale = factor * exact.abs().amax(dim=1, keepdim=True) / 448
        tensors = {Q: (exact / scale).to(torch.float8_e4m3fn), Q + "_scale": scale}
        places.append(str(save_model(tmp_path / f"m{index}", tensors, CONFIG)))
    recipe = {"merge_method": method, "base_model": places[0], "models": [{"model": place} for place in places[1:]]}
    pipeline({**recipe, "out_dtype": "float32"}, tmp_path / "out")
    stored = load_file(Path(places[0]) / "model.safetensors")
    base = stored[Q].float() * stored[Q + "_scale"]
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")[Q], base)
    pipeline({**recipe, "out_dtype": "float32", "storage_noise": "ignore"}, tmp_path / "ignored")
    assert not torch.equal(load_file(tmp_path / "ignored/model.safetensors")[Q], base)


def test_compact_spectra_leave_out_the_same_noise(
    tmp_path: Path, save_model: Save, pipeline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_directions, "LEAST_DIRECTIONS", 12)  # a layer of 64 columns is then kept in part
    models = Models(tmp_path, save_model)
    for kept in ("top", "full"):
        recipe = models.recipe("swudi_a", parameters={"rank_rule": "storage_noise"}, spectra=kept)
        pipeline(recipe, tmp_path / kept, store=tmp_path / f"store {kept}")
    assert distance(models.delta(tmp_path / "top"), models.delta(tmp_path / "full")) < 1e-5
    assert row(tmp_path / "top")["rank"] == row(tmp_path / "full")["rank"] == 9
