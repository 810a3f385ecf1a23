"""Plans of stored models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.steps.make_plan import make_plan


def test_tied_weights_are_found_in_the_bytes(tmp_path: Path) -> None:
    embedding, body = torch.randn(10, 4), {"transformer.h.0.dense.weight": torch.randn(4, 4)}
    models = {
        "base": {"transformer.wte.weight": embedding, "transformer.output_layer.weight": embedding.clone(), **body},
        "once": {"transformer.wte.weight": embedding + 1, **body},
        "untied": {"transformer.wte.weight": embedding, "transformer.output_layer.weight": embedding + 1, **body},
    }
    for name, tensors in models.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")

    def plan(expert: str) -> dict[str, str | None]:
        mapping = {"merge_method": "swudi", "base_model": str(tmp_path / "base"), "models": [str(tmp_path / expert)]}
        made = make_plan(recipe_from_mapping(mapping))
        return {tensor.name: tensor.tied_to for shard in made.shards for tensor in shard.tensors}

    assert plan("once")["transformer.output_layer.weight"] == "transformer.wte.weight"
    with pytest.raises(CheckpointError, match=r"transformer.output_layer.weight: .*untied stores other values"):
        plan("untied")
