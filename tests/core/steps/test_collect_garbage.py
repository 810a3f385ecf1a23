"""Garbage collection: what is removed, and never what a kept or an active run uses or what is not ours."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.cache.inventory import NO_RUN, Inventory, State, StoredRun, usage
from eigenmerge.core.cache.store_marker import mark_store
from eigenmerge.core.errors import StoreError
from eigenmerge.core.steps.collect_garbage import Garbage, collect_garbage, find_garbage
from eigenmerge.core.storage.backends.protocol import ObjectInfo
from eigenmerge.core.storage.store import Store

from ..store_keys import long_key, long_run_key, short_key

NOW = 100_000_000.0
DAY = 86400.0


def stored_run(key: str, *objects: str, state: State = "finished", age: float = 0.0, known: bool = True) -> StoredRun:
    folder = (long_key(f"runs/{key}/objects.json"), long_key(f"runs/{key}/run.json"))
    facts = {"method": "swudi" if key < "c" else "ties", "base": "base", "experts": [f"expert-{key}"]}
    used = frozenset(map(long_key, objects)) if known else None
    return StoredRun(long_run_key(key), state, facts, used, folder, NOW - age)


def inventory(
    runs: tuple[StoredRun, ...],
    objects: Mapping[str, float],
    *,
    claimed: frozenset[str] = frozenset(),
    dead: frozenset[str] = frozenset(),
) -> Inventory:
    """An inventory of these runs with their folders, and of objects given by short key and age in seconds."""
    ages = {key: NOW - run.written for run in runs for key in run.folder}
    ages |= {long_key(key): age for key, age in objects.items()}
    infos = {key: ObjectInfo(key, 10, "e", NOW - age) for key, age in ages.items()}
    return Inventory(infos, runs, frozenset(map(long_key, claimed)), frozenset(map(long_key, dead)), NOW)


def collected(
    found: Inventory, older_than: float | None = None, *runs: str, useless: frozenset[str] = frozenset()
) -> Garbage:
    """The garbage of an inventory, with short keys."""
    garbage = find_garbage(
        found, older_than=older_than, runs=[*map(long_run_key, runs)], useless=frozenset(map(long_key, useless))
    )
    keys, removed, running = (
        tuple(map(short_key, names)) for names in (garbage.keys, garbage.runs, garbage.kept_running)
    )
    return Garbage(keys, removed, garbage.num_bytes, running)


def test_without_options_only_leftovers_of_killed_processes_are_removed() -> None:
    found = inventory(
        (stored_run("aaaa", "spectra/x.arrow"),),
        {
            "spectra/x.arrow": 9 * DAY,
            "parts/orphan.safetensors": 9 * DAY,
            "claims/a.json": 0.0,
            "probes/p": DAY,
            "probes/q": 1,
        },
        dead=frozenset({"claims/a.json"}),
    )
    assert collected(found).keys == ("claims/a.json", "probes/p")


def test_a_named_run_is_removed_except_what_others_use() -> None:
    runs = (stored_run("aaaa", "spectra/shared.arrow", "spectra/a.arrow"), stored_run("bbbb", "spectra/shared.arrow"))
    found = inventory(runs, {"spectra/shared.arrow": DAY, "spectra/a.arrow": 0.0, "spectra/orphan.arrow": DAY})
    garbage = collected(found, None, "aaaa")
    assert garbage.keys == ("spectra/a.arrow", "runs/aaaa/objects.json", "runs/aaaa/run.json")
    assert garbage.runs == ("aaaa",) and garbage.num_bytes == 30


def test_the_age_of_an_object_is_that_of_its_run() -> None:
    runs = (
        stored_run("aaaa", "spectra/old.arrow", "spectra/shared.arrow", age=8 * DAY),
        stored_run("bbbb", "spectra/shared.arrow", age=DAY),
    )
    ages = {
        "spectra/old.arrow": DAY,
        "spectra/shared.arrow": 30 * DAY,
        "spectra/orphan.arrow": 8 * DAY,
        "spectra/new.arrow": DAY,
    }
    assert set(collected(inventory(runs, ages), 7 * DAY).keys) == {
        "spectra/old.arrow",
        "spectra/orphan.arrow",
        "runs/aaaa/run.json",
        "runs/aaaa/objects.json",
    }


def test_an_active_run_is_never_removed() -> None:
    found = inventory(
        (stored_run("aaaa", "spectra/x.arrow", state="running", age=30 * DAY),), {"spectra/x.arrow": 30 * DAY}
    )
    garbage = collected(found, 7 * DAY)
    assert garbage.keys == () and garbage.kept_running == ("aaaa",)
    with pytest.raises(StoreError, match="is active: stop it first"):
        collected(found, None, "aaaa")


def test_an_active_run_without_a_record_protects_every_object() -> None:
    runs = (stored_run("aaaa", state="running", known=False), stored_run("bbbb", "spectra/x.arrow", age=30 * DAY))
    assert not [
        key for key in collected(inventory(runs, {"spectra/x.arrow": DAY}), 7 * DAY).keys if key.startswith("spectra")
    ]


def test_a_claimed_part_is_kept() -> None:
    ages = {"parts/x.safetensors": 30 * DAY, "parts/y.safetensors": 30 * DAY}
    garbage = collected(inventory((), ages, claimed=frozenset({"parts/x.safetensors"})), DAY)
    assert garbage.keys == ("parts/y.safetensors",)


def test_objects_that_are_not_ours_are_never_removed() -> None:
    """Neither by age, nor because a run of an earlier version lists them."""
    sums = "operators/ab/000002-x.safetensors"
    run = stored_run("aaaa", sums, "spectra/x.arrow", age=30 * DAY)
    found = inventory((run,), {sums: 30 * DAY, "spectra/x.arrow": 30 * DAY, "notes.txt": 30 * DAY})
    assert collected(found, DAY).keys == ("spectra/x.arrow", "runs/aaaa/objects.json", "runs/aaaa/run.json")
    assert collected(found, None, "aaaa").keys == ("spectra/x.arrow", "runs/aaaa/objects.json", "runs/aaaa/run.json")


def test_unknown_times_count_as_young() -> None:
    found = inventory((), {"spectra/x.arrow": NOW})
    assert found.objects[long_key("spectra/x.arrow")].modified == 0.0
    assert collected(found, DAY).keys == ()


def test_records_are_removed_before_the_objects_that_they_describe() -> None:
    runs = (stored_run("aaaa", "parts/x.safetensors", "parts/x.json", "spectra/x.arrow"),)
    ages = {"parts/x.safetensors": 0.0, "parts/x.json": 0.0, "spectra/x.arrow": 0.0}
    keys = collected(inventory(runs, ages), None, "aaaa").keys
    assert keys[0] == "parts/x.json" and keys[-1] == "runs/aaaa/run.json"


KEYS = [f"spectra/{letter}.arrow" for letter in "pqrstu"]
names = st.sampled_from(["aaaa", "bbbb", "cccc", "dddd"])
states = st.sampled_from(["running", "finished", "unfinished", "damaged", "unrecorded"])
one_run = st.tuples(states, st.frozensets(st.sampled_from(KEYS)), st.floats(0, 20 * DAY), st.booleans())


@given(
    st.dictionaries(names, one_run),
    st.dictionaries(st.sampled_from(KEYS), st.floats(0, 20 * DAY)),
    st.none() | st.floats(0, 20 * DAY),
    st.frozensets(names),
)
@settings(deadline=None, max_examples=200)
def test_properties_of_every_collection(
    given_runs: dict[str, tuple[State, frozenset[str], float, bool]],
    ages: dict[str, float],
    older_than: float | None,
    named: frozenset[str],
) -> None:
    runs = tuple(
        stored_run(key, *used, state=state, age=age, known=known)
        for key, (state, used, age, known) in given_runs.items()
    )
    found = inventory(runs, ages)
    wanted = [key for key in named if key in given_runs and given_runs[key][0] != "running"]
    garbage = find_garbage(found, older_than=older_than, runs=[*map(long_run_key, wanted)])
    ages = {long_key(key): age for key, age in ages.items()}
    kept = [run for run in runs if run.key not in garbage.runs]
    for run in kept:
        assert not set(garbage.keys) & {*(run.objects or ()), *run.folder}
    assert all(run.state != "running" for run in runs if run.key in garbage.runs)
    assert {*map(long_run_key, wanted)} <= set(garbage.runs)
    assert garbage.num_bytes == 10 * len(garbage.keys)
    for key in garbage.keys:
        used = any(key in (*(run.objects or ()), *run.folder) for run in runs)
        assert used or (older_than is not None and ages[key] > older_than - 1e-3)  # ages are differences of times


def test_superseded_sums_are_removed_although_a_kept_run_used_them() -> None:
    runs = (
        stored_run("aaaa", "sums/a.safetensors", "sums/b.safetensors"),
        stored_run("bbbb", "sums/b.safetensors", state="running"),
    )
    found = inventory(runs, {"sums/a.safetensors": 0.0, "sums/b.safetensors": 0.0})
    garbage = collected(found, useless=frozenset({"sums/a.safetensors", "sums/b.safetensors"}))
    assert garbage.keys == ("sums/a.safetensors",), "an active run keeps what it uses"


def test_usage_by_kind_run_method_and_model() -> None:
    runs = (stored_run("aaaa", "spectra/shared.arrow", "spectra/a.arrow"), stored_run("cccc", "spectra/shared.arrow"))
    found = inventory(runs, {"spectra/shared.arrow": 0.0, "spectra/a.arrow": 0.0, "sums/x.safetensors": 0.0})
    kinds = {row.name: (row.num_objects, row.num_bytes) for row in usage(found, "kind")}
    assert kinds == {"runs": (4, 40), "spectra": (2, 20), "sums": (1, 10)}
    by_run = {short_key(row.name): (row.num_bytes, row.own_bytes) for row in usage(found, "run")}
    assert by_run == {"aaaa": (40, 30), "cccc": (30, 20), NO_RUN: (10, 10)}
    assert usage(found, "run")[-1].name == NO_RUN
    assert {row.name: row.own_bytes for row in usage(found, "method")} == {"swudi": 30, "ties": 20, NO_RUN: 10}
    models = {row.name: row.num_bytes for row in usage(found, "model")}
    assert models == {"base": 60, "expert-aaaa": 40, "expert-cccc": 30, NO_RUN: 10}


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [("nothere", "cache ls"), ("abcd", "beginning of 2 run keys"), ("abc", "too short: give at least 4")],
)
def test_a_run_is_named_by_the_beginning_of_its_key(tmp_path, prefix: str, problem: str) -> None:
    store = Store(str(tmp_path))
    mark_store(store)
    store.write(long_key("runs/abcd1/spectra.arrow"), b"")
    if prefix != "abc":
        store.write(long_key("runs/abcd2/spectra.arrow"), b"")
    with pytest.raises(StoreError, match=problem):
        collect_garbage(store, runs=[prefix])
