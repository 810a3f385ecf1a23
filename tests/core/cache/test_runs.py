"""Records of runs: written before anything is computed, redacted, completed with the result, and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from eigenmerge.core.cache.result import MergeResult
from eigenmerge.core.cache.run_folder import OBJECTS_NAME, RUN_NAME, run_object_key
from eigenmerge.core.cache.runs import read_run, read_run_objects, recorded_run, run_objects
from eigenmerge.core.cache.sealed_json import write_sealed_json
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError, StoreError
from eigenmerge.core.planning.plan import OutputsKeys
from eigenmerge.core.run import Run
from eigenmerge.core.storage.store import Store

from .examples import RUN_KEY, fused, matrix, norm, plan, shard

PLAN = plan(shard(0, matrix("w", aligned=True), norm("n")), shard(1, fused("qkv", "q", "k")))
RESULT = MergeResult("out", RUN_KEY, ("model.safetensors",), 3, 1, "swudi", 2, 0, 3, 0, 10, 0, 20, 0, 1.5, ("careful",))


def test_objects_of_a_run_are_all_keys_of_its_plan() -> None:
    assert run_objects(PLAN) == [
        "alignments/a.json",
        "measures/w.safetensors",
        *(f"parts/{index}.{suffix}" for index in (0, 1) for suffix in ("arrow", "json", "safetensors")),
        "spectra/qkv-k-calibration.arrow",
        "spectra/qkv-k.arrow",
        "spectra/qkv-q-calibration.arrow",
        "spectra/qkv-q.arrow",
        "spectra/w.arrow",
        "sums/qkv-k/000002-x.safetensors",
        "sums/qkv-q/000002-x.safetensors",
    ]


def test_objects_of_both_sides() -> None:
    second = OutputsKeys("spectra/w-outputs.arrow", "sums/w-outputs/000002-x.safetensors")
    tensor = replace(matrix("w", aligned=True), outputs=second, outputs_alignment_key="alignments/outputs.json")
    found = run_objects(plan(shard(0, tensor)))
    assert [key for key in found if not key.startswith("parts/")] == [
        "alignments/a.json",
        "alignments/outputs.json",
        "spectra/w-outputs.arrow",
        "spectra/w.arrow",
        "sums/w-outputs/000002-x.safetensors",
    ]


def test_the_record_exists_and_the_run_is_claimed_while_the_block_runs(place: Callable[[str], Store]) -> None:
    store = place("store")
    with recorded_run(Run(PLAN, store), "out"):
        (claim,) = store.list("claims/")
        assert claim.key.startswith(f"claims/run-{RUN_KEY}-")
        facts = read_run(store, RUN_KEY)
        assert read_run_objects(store, RUN_KEY) == frozenset(run_objects(PLAN))
    assert facts["method"] == "swudi" and facts["base"] == "base" and facts["experts"] == ["expert"]
    assert facts["destination"] == "out" and facts["started"] and facts["finished"] is None and facts["result"] is None
    assert list(store.list("claims/")) == []


def test_a_finished_run_has_its_result(place: Callable[[str], Store]) -> None:
    store = place("store")
    with recorded_run(Run(PLAN, store), "out") as record:
        record.finish(RESULT)
    facts = read_run(store, RUN_KEY)
    assert facts["finished"] >= facts["started"]
    assert facts["result"]["shards_done"] == 2 and facts["result"]["seconds"] == 1.5
    assert not {"destination", "run_key", "files", "warnings"} & facts["result"].keys()


def test_a_run_that_fails_stays_unfinished_and_releases_its_claim(place: Callable[[str], Store]) -> None:
    store = place("store")
    with pytest.raises(ValueError, match="of the merge"), recorded_run(Run(PLAN, store), "out"):
        raise ValueError("of the merge")
    assert read_run(store, RUN_KEY)["finished"] is None
    assert list(store.list("claims/")) == []


def test_credentials_in_addresses_are_not_recorded(place: Callable[[str], Store]) -> None:
    store = place("store")
    secret = "https://user:planted@host/models"
    recipe: dict[str, object] = {"merge_method": "swudi", "models": [{"model": f"{secret}/a"}], "base_model": secret}
    with recorded_run(Run(plan(shard(0, norm("n")), recipe=recipe), store), f"{secret}/out"):
        pass
    content = store.read(run_object_key(RUN_KEY, RUN_NAME)).decode()
    assert "planted" not in content
    assert "host/models/a" in content and "host/models/out" in content


@pytest.mark.parametrize("name", [RUN_NAME, OBJECTS_NAME])
def test_damaged_missing_and_swapped_records(place: Callable[[str], Store], name: str) -> None:
    store = place("store")
    read = read_run if name == RUN_NAME else read_run_objects
    with pytest.raises(ObjectNotFoundError):
        read(store, RUN_KEY)
    with recorded_run(Run(PLAN, store), "out"):
        pass
    key = run_object_key(RUN_KEY, name)
    content = store.read(key)
    other = "f" * 64
    store.write(run_object_key(other, name), content)
    with pytest.raises(CorruptObjectError, match="not the record of this run"):
        read(store, other)
    for damaged in (b"", content[:-30], content.replace(RUN_KEY.encode(), b"x" * 64), b"[]"):
        store.write(key, damaged)
        with pytest.raises(CorruptObjectError, match=name):
            read(store, RUN_KEY)


@pytest.mark.parametrize("objects", [None, "parts/a", [1, 2], {"parts/a": 1}])
def test_a_list_of_objects_of_another_type(tmp_path, objects: object) -> None:
    store = Store(str(tmp_path))
    content = {"format": 1, "run_key": RUN_KEY, "objects": objects}
    write_sealed_json(store, run_object_key(RUN_KEY, OBJECTS_NAME), content)
    with pytest.raises(CorruptObjectError, match="has no list of objects"):
        read_run_objects(store, RUN_KEY)


def test_a_record_of_a_later_format(tmp_path) -> None:
    store = Store(str(tmp_path))
    write_sealed_json(store, run_object_key(RUN_KEY, RUN_NAME), {"format": 2, "run_key": RUN_KEY})
    with pytest.raises(CorruptObjectError, match="in format 1"):
        read_run(store, RUN_KEY)


def test_a_run_key_may_not_leave_the_folder() -> None:
    with pytest.raises(StoreError, match="refused"):
        run_object_key("../x", RUN_NAME)


def test_json_of_the_record_is_readable_by_people(tmp_path) -> None:
    store = Store(str(tmp_path))
    with recorded_run(Run(PLAN, store), "out") as record:
        record.finish(RESULT)
    content = json.loads(store.read(run_object_key(RUN_KEY, RUN_NAME)))
    assert list(content)[:4] == ["format", "run_key", "eigenmerge", "method"] and "sha256" in content
