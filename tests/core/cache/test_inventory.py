"""Inventories: states of runs, claims of the living and the dead, and sizes by kind, run, method and model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from eigenmerge.core.cache.inventory import (
    NO_RUN,
    Inventory,
    StoredRun,
    reread_runs,
    store_clock,
    take_inventory,
    usage,
)
from eigenmerge.core.cache.result import MergeResult
from eigenmerge.core.cache.run_folder import OBJECTS_NAME, RUN_NAME, run_object_key
from eigenmerge.core.cache.runs import recorded_run
from eigenmerge.core.coordination.claim_keys import claim_key, run_claim_key
from eigenmerge.core.coordination.claims import ClaimWatcher, hold_run
from eigenmerge.core.run import Run
from eigenmerge.core.storage.store import Store

from ..store_keys import long_key
from .examples import RUN_KEY, matrix, plan, real_shard, write_part

Place = Callable[[str], Store]
SHARD = real_shard(0, matrix("w"))
RESULT = MergeResult("out", RUN_KEY, (), 1, 1, "swudi", 1, 0, 1, 0, 10, 0, 20, 0, 1.5)


def record(store: Store, *, finished: bool = True) -> None:
    with recorded_run(Run(plan(SHARD), store), "out") as run:
        if finished:
            run.finish(RESULT)


def only_run(inventory: Inventory) -> StoredRun:
    (run,) = inventory.runs
    return run


def test_an_empty_store(place: Place) -> None:
    inventory = take_inventory(place("store"))
    assert (inventory.objects, inventory.runs, usage(inventory, "kind")) == ({}, (), [])


def test_a_finished_run(place: Place) -> None:
    store = place("store")
    record(store)
    write_part(store, SHARD, b"header--data")
    inventory = take_inventory(store)
    run = only_run(inventory)
    assert (run.key, run.state, run.method, run.models) == (RUN_KEY, "finished", "swudi", ["base", "expert"])
    assert set(run.folder) == {run_object_key(RUN_KEY, RUN_NAME), run_object_key(RUN_KEY, OBJECTS_NAME)}
    assert run.objects is not None and SHARD.part_key in run.objects and long_key("spectra/w.arrow") in run.objects
    users = inventory.users()
    assert users[SHARD.part_key] == [run] and all(users[key] == [run] for key in run.folder)
    assert inventory.size([SHARD.part_key]) == 12


def test_an_unfinished_run(place: Place) -> None:
    store = place("store")
    record(store, finished=False)
    assert only_run(take_inventory(store)).state == "unfinished"


def test_a_run_is_running_while_its_claim_is_held(place: Place) -> None:
    store = place("store")
    with recorded_run(Run(plan(SHARD), store), "out"):
        assert only_run(take_inventory(store)).state == "running"
    assert only_run(take_inventory(store)).state == "unfinished"


def test_a_run_is_running_while_one_of_its_parts_is_claimed(place: Place) -> None:
    store = place("store")
    record(store)
    claim = ClaimWatcher(store, claim_key(SHARD.part_key)).acquire()
    assert claim is not None
    with claim:
        inventory = take_inventory(store)
        assert inventory.claimed_parts == {SHARD.part_key}
        assert only_run(inventory).state == "running"


def test_a_run_that_has_claimed_and_not_yet_recorded(place: Place) -> None:
    store = place("store")
    with hold_run(store, RUN_KEY):
        run = only_run(take_inventory(store))
    assert (run.key, run.state, run.objects, run.folder) == (RUN_KEY, "running", None, ())


@pytest.mark.parametrize("name", [RUN_NAME, OBJECTS_NAME])
@pytest.mark.parametrize(("damage", "state"), [("cut", "damaged"), ("gone", "unrecorded")])
def test_a_damaged_record(place: Place, name: str, damage: str, state: str) -> None:
    store = place("store")
    record(store)
    key = run_object_key(RUN_KEY, name)
    if damage == "cut":
        store.write(key, store.read(key)[:-9])
    else:
        store.delete([key])
    run = only_run(take_inventory(store))
    assert run.state == state and run.method == "?" and run.models == []
    assert (run.objects is None) == (name == OBJECTS_NAME)


def test_claims_of_dead_processes(place: Place) -> None:
    store = place("store")
    with hold_run(store, RUN_KEY):
        (held,) = [info.key for info in store.list("claims/")]
        owner = json.loads(store.read(held))
        dead = {
            run_claim_key("f" * 64, "0" * 12): json.dumps(owner | {"pid": 2**22 + 1}).encode(),
            claim_key(long_key("parts/x.safetensors")): b"{",
        }
        for key, content in dead.items():
            store.write(key, content)
        inventory = take_inventory(store)
    assert inventory.dead_claims == dead.keys()
    assert inventory.claimed_parts == frozenset()
    assert [run.key for run in inventory.runs] == [RUN_KEY]


def test_claims_of_other_machines_live_for_five_minutes(place: Place) -> None:
    store = place("store")
    owner = {"id": "x", "host": "elsewhere", "boot": "b", "pid": 1, "started": 1.0, "beat": 3}
    store.write(claim_key(SHARD.part_key), json.dumps(owner).encode())
    written = store_clock(store)
    assert take_inventory(store, written + 200).claimed_parts == {SHARD.part_key}
    assert take_inventory(store, written + 400).dead_claims == {claim_key(SHARD.part_key)}


def test_reread_runs_finds_a_run_that_began_later(place: Place) -> None:
    store = place("store")
    write_part(store, SHARD, b"header--data")
    before = take_inventory(store)
    with recorded_run(Run(plan(SHARD), store), "out"):
        store.write(long_key("spectra/later.arrow"), b"")
        after = reread_runs(store, before)
    assert before.runs == () and only_run(after).state == "running"
    assert after.now == before.now
    assert long_key("spectra/later.arrow") not in after.objects, "other folders are not listed again"
    assert before.objects.keys() < after.objects.keys()


def test_the_store_clock_leaves_nothing(place: Place) -> None:
    store = place("store")
    store.write("x", b"")
    assert abs(store_clock(store) - store.info("x").modified) < 60
    assert [info.key for info in store.list("")] == ["x"]


def test_usage_counts_what_two_runs_share_in_both(place: Place) -> None:
    store = place("store")
    record(store)
    write_part(store, SHARD, bytes(100))
    store.write(long_key("spectra/orphan.arrow"), bytes(1000))
    store.write("notes.txt", bytes(5000))
    inventory = take_inventory(store)
    kinds = {row.name: (row.num_objects, row.num_bytes) for row in usage(inventory, "kind")}
    assert kinds["spectra"] == (1, 1000) and kinds["other"] == (1, 5000)
    assert kinds["parts"][0] == kinds["runs"][0] == 2
    assert sum(size for _, size in kinds.values()) == inventory.size(inventory.objects)
    by_run = usage(inventory, "run")
    assert [row.name for row in by_run] == [RUN_KEY, NO_RUN], "what no run uses comes last"
    assert (by_run[1].num_objects, by_run[1].num_bytes) == (2, 6000)
    by_model = {row.name: row for row in usage(inventory, "model")}
    assert by_model["base"].num_bytes == by_model["expert"].num_bytes == by_run[0].num_bytes
    assert by_model["base"].own_bytes == 0, "the expert needs the same objects"


def test_an_inventory_needs_neither_torch_nor_pyarrow() -> None:
    """`eigenmerge cache ls` has to be quick."""
    heavy = ("torch", "pyarrow", "prefect", "psutil", "filelock")
    code = f"import sys, eigenmerge.core.cache.inventory; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
