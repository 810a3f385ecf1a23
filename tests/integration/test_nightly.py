"""Scheduled merges: they run only if an expert has changed, and update the pointer to the latest merge last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..small_models import llama_config


@pytest.fixture
def nightly(prefect_server: str, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Run the flow on tmp_path/registry and publish to tmp_path/published."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    (tmp_path / "recipe.yml").write_text(f"merge_method: swudi\nbase_model: {tmp_path / 'base'}\n")

    def run(**options: Any) -> Any:
        from eigenmerge.flows.nightly import nightly as flow

        places = {name: str(tmp_path / name) for name in ("registry", "store")}
        return flow(str(tmp_path / "recipe.yml"), publish=str(tmp_path / "published"), workers=1, **places, **options)

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield run


def latest(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "published" / "latest.json").read_text())


def folders(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "published").iterdir() if path.is_dir()}


def test_several_nights_of_one_registry(
    nightly: Callable[[], Any],
    make_models: Callable[..., Any],
    save_model: Callable[..., Path],
    merge_flow: Callable[..., Any],
    load_checkpoint: Callable[[Path], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    models = make_models(num_experts=4, layers=1)
    registry = tmp_path / "registry"

    registry.mkdir()
    empty = nightly()
    assert (empty.outcome, empty.destination, empty.merged) == ("nothing new", None, None)
    assert not (tmp_path / "published").exists()

    for index in (0, 1):
        save_model(registry / f"expert{index}", models.expert_tensors[index], llama_config(layers=1))
    first = nightly()
    assert first.outcome == "full"
    assert Path(first.destination).name == latest(tmp_path)["folder"]
    assert set(latest(tmp_path)["experts"]) == {"expert0", "expert1"}

    idle = nightly()
    assert (idle.outcome, idle.merged, idle.destination) == ("nothing new", None, first.destination)
    assert folders(tmp_path) == {latest(tmp_path)["folder"]}

    # one more expert, and one with an incomplete upload
    save_model(registry / "expert2", models.expert_tensors[2], llama_config(layers=1))
    half = save_model(registry / "expert3", models.expert_tensors[3], llama_config(layers=1)) / "model.safetensors"
    half.write_bytes(half.read_bytes()[:-100])
    second = nightly()
    assert (second.outcome, second.reason) == ("incremental", "added expert2")
    assert len(folders(tmp_path)) == 2
    model_bytes = sum(value.nbytes for value in models.base_tensors.values())
    assert first.merged.bytes_read == 3 * model_bytes
    assert second.merged.bytes_read == 2 * model_bytes  # the base and the new expert
    scratch = models.recipe(models=[{"model": str(registry / f"expert{i}")} for i in range(3)])
    (tmp_path / "scratch.yml").write_text(json.dumps(scratch, indent=1))
    merge_flow(tmp_path / "scratch.yml", tmp_path / "scratch", store=str(tmp_path / "other-store"), workers=1)
    published, expected = load_checkpoint(Path(second.destination)), load_checkpoint(tmp_path / "scratch")
    for name, value in expected.items():
        torch.testing.assert_close(published[name], value, rtol=1e-5, atol=1e-6)

    # another expert under a name that was merged before
    save_model(registry / "expert0", models.expert_tensors[3], llama_config(layers=1))
    third = nightly()
    assert (third.outcome, third.reason) == ("full", "changed expert0")
    assert nightly().outcome == "nothing new"


def test_a_bad_expert_is_named_in_the_state_of_the_run(
    nightly: Callable[..., Any], make_models: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    from eigenmerge.flows.nightly import WITH_SKIPPED

    models = make_models(num_experts=2, layers=1)
    registry = tmp_path / "registry"
    save_model(registry / "good", models.expert_tensors[0], llama_config(layers=1))
    broken = {name: value.clone() for name, value in models.expert_tensors[1].items()}
    broken["model.layers.0.self_attn.q_proj.weight"][3, 4] = float("nan")
    save_model(registry / "bad", broken, llama_config(layers=1))
    state = nightly(return_state=True)
    assert state.is_completed() and state.name == WITH_SKIPPED and "skipped bad" in state.message
    assert set(state.result().skipped) == {"bad"}
    assert set(latest(tmp_path)["experts"]) == {"good"}
    # after a correction the next run merges it
    save_model(registry / "bad", models.expert_tensors[1], llama_config(layers=1))
    assert nightly().outcome == "incremental"
    assert set(latest(tmp_path)["experts"]) == {"good", "bad"}
