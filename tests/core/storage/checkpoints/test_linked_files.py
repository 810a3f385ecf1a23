"""Links in the folder of a model: what is copied to the output must belong to the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.steps.read_recipe import read_stages
from eigenmerge.core.storage.checkpoints.list_model import list_model

from ....stages import merge_stages


@pytest.fixture
def two(make_models: Callable[..., Any]) -> Any:
    return make_models(num_experts=2, layers=1)


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "vocab.txt"]
)
def test_a_link_to_a_secret_is_refused(two: Any, pipeline: Any, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "credentials"
    secret.write_text('{"aws_secret_access_key": "planted"}')
    (two.base / name).unlink(missing_ok=True)
    (two.base / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*credentials, outside of the model"):
        pipeline(two.recipe("average"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_outside_of_the_model_is_refused(two: Any, pipeline: Any, tmp_path: Path) -> None:
    """config.json of the output starts from this file: ~/.docker/config.json is JSON too."""
    shutil.move(two.base / "config.json", tmp_path / "config.json")
    (two.base / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a link to"):
        pipeline(two.recipe("average"), tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "config.json",
        "model.safetensors.index.json",
        "model.safetensors",
        "model-00002-of-00002.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    ],
)
def test_a_link_to_nothing_is_refused(two: Any, name: str) -> None:
    """The merge would lack the file, as if the base had none."""
    (two.base / name).unlink(missing_ok=True)
    (two.base / name).symlink_to("../../blobs/removed")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to \.\./\.\./blobs/removed, which does not exist"):
        list_model(str(two.base))


def test_a_link_to_nothing_that_no_merge_reads_is_ignored(two: Any) -> None:
    (two.base / "README.md").symlink_to("gone")
    (two.base / "model.onnx").symlink_to("gone")
    assert list_model(str(two.base)).tensors


def test_a_link_to_weights_that_the_index_does_not_name_is_ignored(two: Any) -> None:
    names = [name for name in load_file(two.base / "model.safetensors")]
    (two.base / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")})
    )
    (two.base / "consolidated.safetensors").symlink_to("gone")
    assert list_model(str(two.base)).tensors


def test_links_that_people_use_are_followed(two: Any, pipeline: Any, tmp_path: Path) -> None:
    """The cache of the Hub, weights on another disk, a folder that is a link, a link to a file beside it."""
    cache = tmp_path / "models--org--base"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots/0123"
    snapshot.mkdir(parents=True)
    for path in two.base.iterdir():
        shutil.copy(path, cache / "blobs" / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    (snapshot / "special_tokens_map.json").symlink_to("tokenizer.json")
    expert = two.experts[0]
    shutil.move(expert / "model.safetensors", tmp_path / "weights.safetensors")
    (expert / "model.safetensors").symlink_to(tmp_path / "weights.safetensors")
    shutil.move(expert / "config.json", tmp_path / "expert.json")
    (expert / "config.json").symlink_to(tmp_path / "expert.json")
    (tmp_path / "link").symlink_to(snapshot)
    for number, base in enumerate((snapshot, tmp_path / "link")):
        pipeline(two.recipe("average") | {"base_model": str(base)}, tmp_path / f"out{number}")
        assert (tmp_path / f"out{number}/special_tokens_map.json").read_text() == "{}"


def stages_of(two: Any, destination: Path) -> Any:
    text = f"""
name: half
merge_method: linear
base_model: {two.base}
models: [{{model: {two.experts[0]}, parameters: {{weight: 1}}}}]
---
merge_method: linear
models:
  - {{model: half, parameters: {{weight: 1}}}}
  - {{model: {two.experts[1]}, parameters: {{weight: 1}}}}
"""
    return read_stages(text, str(destination))


def test_a_result_that_is_only_planned_has_the_files_of_its_base(two: Any, tmp_path: Path) -> None:
    assert (two.base / "tokenizer.json").exists()
    merge_stages(stages_of(two, tmp_path / "out"), store=str(tmp_path / "store"))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_a_link_to_a_secret_is_refused_in_the_first_of_two_documents(two: Any, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text('{"aws_secret_access_key": "planted"}')
    (two.base / "vocab.txt").symlink_to(tmp_path / "credentials")
    with pytest.raises(CheckpointError, match=r"'half': .*vocab\.txt is a link to .*credentials, outside of the model"):
        merge_stages(stages_of(two, tmp_path / "out"), store=str(tmp_path / "store"))
