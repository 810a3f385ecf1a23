"""Finite inputs whose sums overflow: a right result, or one line that names the tensor and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.errors import NonFiniteError
from eigenmerge.core.numerics.registry import built_in_methods

LARGEST = torch.finfo(torch.float32).max
NEEDED = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.5}}


def vectors(kind: str, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    small = [torch.randn(8, 6, generator=generator) for _ in range(count)]
    if kind == "all":
        return [torch.full((8, 6), LARGEST)] * count
    if kind == "cancelling":
        return [vector.sign() * LARGEST for vector in small]
    if kind == "one entry":
        small[0][0, 0] = LARGEST
        return small
    return [vector * 1e25 for vector in small]  # their squares overflow, their sums do not


@pytest.mark.parametrize("kind", ["all", "cancelling", "one entry", "squares"])
@pytest.mark.parametrize("name", sorted(built_in_methods()))
def test_every_method_is_right_or_refuses(name: str, kind: str) -> None:
    method = built_in_methods()[name]
    given = vectors(kind, method.other_experts or method.max_experts or 3)
    parameters: dict[str, Any] = dict(NEEDED.get(name, {}))
    weight = method.Expert.model_fields.get("weight")
    if weight is not None and weight.is_required():
        parameters["weight"] = [1.0] * len(given)
    try:
        found = merge_task_vectors(given, method=name, **parameters)
    except NonFiniteError as error:
        assert "too large" in str(error) and "float64" in str(error) and "\n" not in str(error)
        return
    exact = merge_task_vectors([vector.double() for vector in given], method=name, **parameters)
    assert (found.double() - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("method", ["swudi", "tsv_m", "wudi", "average"])
def test_a_merge_of_files_names_expert_and_tensor(save_model: Any, pipeline: Any, tmp_path: Path, method: str) -> None:
    name = "layers.0.w.weight"
    places = [
        save_model(tmp_path / f"m{i}", {name: torch.full((8, 6), value)})
        for i, value in enumerate((-LARGEST, 1.0, LARGEST))
    ]
    recipe = {"merge_method": method, "base_model": str(places[0]), "models": [str(place) for place in places[1:]]}
    with pytest.raises(NonFiniteError) as caught:
        pipeline(recipe, tmp_path / "out")
    message = str(caught.value)
    assert name in message and "set arithmetic: float64" in message and "\n" not in message
    assert method == "average" or str(places[1]) in message or str(places[2]) in message
