"""The flow on a Prefect server: the same result as the merge without Prefect, resuming, errors and time limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.errors import InterruptedRunError, NonFiniteError
from eigenmerge.core.formats.file_names import INDEX_NAME, MANIFEST_NAME, MODEL_CARD_NAME
from eigenmerge.core.recipe.recipe import recipe_from_mapping

ALIGNED = {"exp_time": 300, "rank_ratio": 0.65, "alignment_rho": 0.5}


@pytest.mark.parametrize(("method", "parameters"), [("swudi_a", {}), ("swudi", ALIGNED), ("ties", {"density": 0.5})])
def test_the_flow_equals_the_merge_without_prefect(
    models: Any, merge_flow: Any, pipeline: Any, tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    recipe = models.write_recipe(method, output={"max_shard_size": "40KB"}, parameters=parameters)
    alone = pipeline(recipe, tmp_path / "alone", tmp_path / "store-alone")
    flow = merge_flow(recipe, tmp_path / "flow", store=str(tmp_path / "store-flow"), workers=2)
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert (
        names == {path.name for path in (tmp_path / "flow").iterdir()} >= {INDEX_NAME, MANIFEST_NAME, MODEL_CARD_NAME}
    )
    for name in names:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "flow" / name).read_bytes(), name
    assert replace(flow, seconds=alone.seconds, destination=alone.destination) == alone
    stored = [
        {path.relative_to(store) for path in store.rglob("*") if path.is_file()}
        for store in (tmp_path / "store-alone", tmp_path / "store-flow")
    ]
    assert stored[0] == stored[1] != set()


def test_a_resumed_flow_computes_nothing(models: Any, merge_flow: Any, pipeline: Any, tmp_path: Path) -> None:
    recipe, store = models.write_recipe("swudi_a"), tmp_path / "store"
    first = pipeline(recipe, tmp_path / "a", store)
    second = merge_flow(recipe, tmp_path / "b", store=str(store))
    assert (second.shards_done, second.shards_reused) == (0, first.shards_done)
    assert second.bytes_read == 0 and second.decompositions_computed == 0


def test_the_error_of_a_shard_is_raised_by_the_flow(
    make_models: Any, save_model: Any, merge_flow: Any, tmp_path: Path
) -> None:
    models = make_models()
    broken = dict(models.expert_tensors[1])
    name = "model.layers.1.self_attn.q_proj.weight"
    broken[name] = broken[name].clone().fill_(float("nan"))
    save_model(models.experts[1], broken)
    with pytest.raises(NonFiniteError, match=r"q_proj.*NaN"):
        merge_flow(models.write_recipe("swudi_a"), tmp_path / "out", store=str(tmp_path / "store"))
    assert not list((tmp_path / "out").glob("*"))


def test_a_time_limit_stops_the_flow(models: Any, merge_flow: Any, tmp_path: Path) -> None:
    recipe = recipe_from_mapping(models.recipe("swudi_a"))
    with pytest.raises(InterruptedRunError, match="time limit"):
        merge_flow(recipe, tmp_path / "out", store=str(tmp_path / "store"), time_limit=1e-6)
