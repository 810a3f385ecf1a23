"""Damage to every kind of object in a store on S3: it is detected, and the object is computed again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from eigenmerge.core.cache.result import MergeResult
from eigenmerge.core.coordination.claim_keys import claim_key
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.steps.merge_run import merge_run

from ..conftest import fresh_s3_root
from ..small_models import Models, base_weights, expert_weights, llama_config, save_model
from .s3_models import S3Models, objects, upload

# Keys by kind of object, and keys to leave out so that the object is read: a run with parts reads no spectra, and with
# spectra no sums.
KINDS = {
    "part": (r"parts/.*\.safetensors", None),
    "record of a part": (r"parts/.*\.json", None),
    "table of a part": (r"parts/.*\.arrow", None),
    "spectrum": (r"spectra/.*\.arrow", r"parts/"),
    "alignment": (r"alignments/.*\.json", r"parts/"),
    "sums": (r"sums/.*\.safetensors", r"(parts|spectra|alignments)/"),
    "record of a run": (r"runs/.*", None),
}
DAMAGES = ("truncated", "flipped", "emptied", "another run's")
SETTINGS: dict[str, Any] = {
    "keep_sums": True,
    "parameters": {"exp_time": 300, "alignment_rho": 0.5},
    "output": {"max_shard_size": "30KB"},
}


@dataclass(frozen=True)
class Finished:
    """A finished merge, its store, and the store of another merge of the same shapes."""

    models: S3Models
    expected: dict[str, bytes]
    store: dict[str, bytes]
    other: dict[str, bytes]


@pytest.fixture(scope="module")
def finished(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("models")
    base, config = base_weights(layers=2), llama_config(layers=2)
    experts = [expert_weights(base, index) for index in range(4)]
    places = [save_model(folder / f"expert{index}", tensors, config) for index, tensors in enumerate(experts)]
    root = fresh_s3_root(s3_endpoint)
    local = Models(folder, save_model(folder / "base", base, config), places, base, experts)
    models = upload(local, root.uri, root.storage_options)
    for name, chosen in (("one", (0, 1, 2)), ("other", (1, 2, 3))):
        merge(models, name, chosen)
    stores = [objects(models.store(f"store-{name}")) for name in ("one", "other")]
    return Finished(models, objects(models.store("out-one")), *stores)


def merge(models: S3Models, name: str, chosen: tuple[int, ...] = (0, 1, 2)) -> MergeResult:
    content = models.recipe("swudi", **SETTINGS)
    content["models"] = [content["models"][index] for index in chosen]
    recipe = recipe_from_mapping(content)
    return merge_run(recipe, f"{models.uri}/out-{name}", store=f"{models.uri}/store-{name}")


def damaged(content: bytes, damage: str, other: bytes) -> bytes:
    middle = len(content) * 3 // 4
    return {
        "truncated": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :],
        "emptied": b"",
        "another run's": other,
    }[damage]


def write_damaged_store(finished: Finished, name: str, kind: str) -> int:
    """Write a copy of the store with all objects of one kind damaged, in turn in each way; return their number."""
    pattern, gone = KINDS[kind]
    others = [content for key, content in finished.other.items() if re.fullmatch(pattern, key)]
    store, count = finished.models.store(f"store-{name}"), 0
    for key, content in finished.store.items():
        if gone is not None and re.match(gone, key):
            continue
        if re.fullmatch(pattern, key):
            damage = DAMAGES[count % len(DAMAGES)]
            store.write(key, damaged(content, damage, others[count % len(others)]))
            count += 1
        else:
            store.write(key, content)
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_objects_are_computed_again(finished: Finished, kind: str) -> None:
    name = re.sub(r"\W", "-", kind)
    count = write_damaged_store(finished, name, kind)
    assert count >= (len(DAMAGES) if kind not in ("alignment", "record of a run") else 1)
    result = merge(finished.models, name)
    assert objects(finished.models.store(f"out-{name}")) == finished.expected
    if kind in ("part", "record of a part"):
        assert result.shards_done == count
        assert sum("again" in warning for warning in result.warnings) >= count
    if kind == "spectrum":
        assert result.decompositions_computed == count
        assert sum("computed again" in warning for warning in result.warnings) >= count
    if kind == "sums":
        assert sum("summed again" in warning for warning in result.warnings) >= 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_alignment(finished: Finished, damage: str) -> None:
    name = f"alignment-{damage[:5].strip()}"
    pattern, gone = KINDS["alignment"]
    (key,) = [key for key in finished.store if re.fullmatch(pattern, key)]
    (other,) = [content for found, content in finished.other.items() if re.fullmatch(pattern, found)]
    store = finished.models.store(f"store-{name}")
    for found, content in finished.store.items():
        if not re.match(gone or "", found) or found == key:
            store.write(found, damaged(content, damage, other) if found == key else content)
    merge(finished.models, name)
    assert objects(finished.models.store(f"out-{name}")) == finished.expected


def test_claims_with_arbitrary_content(finished: Finished) -> None:
    store = finished.models.store("store-claims")
    parts = [key for key in finished.store if re.fullmatch(r"parts/.*\.safetensors", key)]
    contents = [b"", b"{", b"[]", b"\xff" * 9, b'{"host": 1}', b"null", finished.store[parts[0]]]
    for number, part in enumerate(parts):
        store.write(claim_key(part), contents[number % len(contents)])
    merge(finished.models, "claims")
    assert objects(finished.models.store("out-claims")) == finished.expected
    assert not [key for key in objects(store) if key.startswith("claims/")]
