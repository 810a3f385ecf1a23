"""Merges with base, experts, store and output on S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from eigenmerge.core.storage.store import Store

from .s3_models import ForkedCommands, S3Models, objects, upload

# Files that do not contain the addresses of the inputs, so they are equal wherever the inputs are stored.
WITHOUT_ADDRESSES = ("model.safetensors", "config.json", "tokenizer.json")


def write_profile(folder: Path, name: str, options: dict[str, Any]) -> dict[str, str]:
    """Write the two files of an AWS profile and return the environment that names them."""
    credentials = f"[{name}]\naws_access_key_id = {options['key']}\naws_secret_access_key = {options['secret']}\n"
    (folder / "credentials").write_text(credentials)
    config = f"[profile {name}]\nregion = {options['region']}\nendpoint_url = {options['endpoint_url']}\n"
    (folder / "config").write_text(config)
    return {
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_CONFIG_FILE": str(folder / "config"),
    }


@pytest.mark.parametrize("source", ["storage_options", "environment", "profile", "AWS_PROFILE", "none"])
def test_a_merge_on_s3_gives_the_bytes_of_a_local_one(
    uploaded_models: Any,
    s3_models: S3Models,
    faulty_s3: Any,
    pipeline: Any,
    forked_commands: ForkedCommands,
    tmp_path: Path,
    source: str,
) -> None:
    proxy, root = faulty_s3
    options = dict(root.storage_options) | {"key": f"KEYOF{source.upper()}"}
    chosen: dict[str, Any] | None = {"storage_options": options, "profile": {"profile": "merging"}}.get(source)
    environment = {
        "environment": {
            "AWS_ACCESS_KEY_ID": options["key"],
            "AWS_SECRET_ACCESS_KEY": options["secret"],
            "AWS_ENDPOINT_URL": options["endpoint_url"],
            "AWS_REGION": options["region"],
        },
        "none": {"AWS_ENDPOINT_URL": options["endpoint_url"]},
    }.get(source, write_profile(tmp_path, "merging", options))
    if source == "AWS_PROFILE":
        environment["AWS_PROFILE"] = "merging"
    # By content: fingerprints determine the order in which experts are added, and so the last bits.
    recipe = s3_models.write_recipe(storage_options=chosen, fingerprint="content")
    out, store = f"{s3_models.uri}/out", f"{s3_models.uri}/store"
    finished = forked_commands.run("merge", recipe, out, "--store", store, "--json", env=environment)

    if source == "none":
        assert finished.code == 1 and "no credentials found" in finished.output, finished.output
        assert len(finished.output.splitlines()) == 1
        return
    assert finished.code == 0, finished.output
    assert proxy.access_keys == {options["key"]}
    local = pipeline(
        uploaded_models.write_recipe("swudi_a", fingerprint="content"), tmp_path / "out", store=str(tmp_path / "store")
    )
    target = s3_models.store("out")
    for name in WITHOUT_ADDRESSES:
        assert target.read(name) == (tmp_path / "out" / name).read_bytes()
    assert {info.key for info in target.list("")} == {
        *WITHOUT_ADDRESSES,
        "README.md",
        "eigenmerge_manifest.json",
        "eigenmerge_report.html",
    }
    assert finished.json["decompositions_computed"] == local.decompositions_computed
    assert not [key for key in objects(s3_models.store("store")) if key.startswith(("claims/", "probes/"))]


# S3 copies parts of at least 5 MiB, and the header has to be sent: 5 MiB of each file pass through this process.
@pytest.mark.parametrize(("layers", "num_files"), [(22, 1), pytest.param(44, 2, marks=pytest.mark.soak)])
def test_the_server_copies_the_weights(
    make_models: Any, s3_root: Any, faulty_s3: Any, pipeline: Any, layers: int, num_files: int
) -> None:
    from eigenmerge.core.recipe.recipe import recipe_from_mapping
    from eigenmerge.core.steps.listener import Listener

    proxy, _ = faulty_s3
    local = make_models(num_experts=1, dtype=torch.bfloat16, layers=layers, hidden=1024)
    models = upload(local, s3_root.uri, s3_root.storage_options).through(proxy.endpoint)
    moved: list[int] = []

    class Watching(Listener):
        def assembling(self, run: Any) -> None:
            moved.append(proxy.bytes_moved)

    recipe = models.recipe("average", output={"max_shard_size": "152MB"})
    result = pipeline(recipe_from_mapping(recipe), f"{models.uri}/out", f"{models.uri}/store", listeners=(Watching(),))
    assert len(result.files) == num_files and result.bytes_written > 105e6 * num_files
    assert result.bytes_through_reduce <= 0.05 * result.bytes_written
    # Bytes that pass through are read once and sent once. The joined file is read once more, to compare the hash of
    # every tensor with that of its computation; the remaining traffic of the reduce is the manifest.
    assert 0 <= proxy.bytes_moved - moved[0] - 2 * result.bytes_through_reduce - result.bytes_written < 1e6
    expected = {
        name: base + (expert - base)
        for (name, base), expert in zip(local.base_tensors.items(), local.expert_tensors[0].values(), strict=True)
    }
    target = models.store("out")
    stored = {}
    for name in result.files:
        stored |= load(target.read(name))
    assert stored.keys() == expected.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, expected[name].bfloat16(), rtol=1e-2, atol=1e-2)


def test_a_server_that_ignores_conditional_writes(
    uploaded_models: Any, s3_models: S3Models, faulty_s3: Any, pipeline: Any, tmp_path: Path
) -> None:
    from eigenmerge.core.recipe.recipe import recipe_from_mapping

    proxy, _ = faulty_s3
    there = s3_models.through(proxy.endpoint)

    def merge_to(name: str) -> Any:
        recipe = recipe_from_mapping(there.recipe("swudi_a"))
        return pipeline(recipe, f"{there.uri}/{name}", store=f"{there.uri}/store-of-{name}")

    assert not any("If-None-Match" in warning for warning in merge_to("first").warnings)
    proxy.faults.dropped_headers = frozenset({"if-none-match"})
    result = merge_to("second")
    assert sum("If-None-Match" in warning for warning in result.warnings) == 1
    first, second = objects(there.store("first")), objects(there.store("second"))
    assert first == second


def test_a_store_without_write_permission_is_reported_before_weights_are_read(
    s3_models: S3Models, faulty_s3: Any, pipeline: Any
) -> None:
    from eigenmerge.core.errors import StoreError
    from eigenmerge.core.recipe.recipe import recipe_from_mapping

    proxy, _ = faulty_s3
    there = s3_models.through(proxy.endpoint)
    proxy.faults.decide = lambda method, path: "denied" if method == "PUT" and "/store/" in path else None
    with pytest.raises(StoreError, match="permission denied"):
        pipeline(recipe_from_mapping(there.recipe()), f"{there.uri}/out", store=f"{there.uri}/store")
    weights = [
        path for method, path, _ in proxy.requests if method == "GET" and "expert" in path and "safetens" in path
    ]
    assert len(weights) <= 4 * there.num_experts, "only headers, and the bytes of the fingerprint, were read"
    assert not list(Store(f"{s3_models.uri}/out", s3_models.options).list(""))
