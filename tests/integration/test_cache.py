"""`eigenmerge cache` on stores of real runs, on disk and on S3: list, measure, remove and verify objects."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.cache.inventory import take_inventory
from eigenmerge.core.cache.runs import recorded_run, run_objects
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.cache.store_marker import mark_store
from eigenmerge.core.coordination.claims import hold_run
from eigenmerge.core.formats.store_folders import STORE_MARKER
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.run import Run
from eigenmerge.core.steps.collect_garbage import collect_garbage
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.steps.verification.verify_store import verify_store
from eigenmerge.core.storage.store import Store

from ..core.cache import examples

FOLDERS = ("spectra", "sums", "parts", "alignments")


def keys(store: Path | Store) -> set[str]:
    """Return all keys of a store without that of its marker."""
    opened = store if isinstance(store, Store) else Store(str(store))
    return {info.key for info in opened.list("")} - {STORE_MARKER}


def make_old(store: Path, days: float, pattern: str = "**/*") -> None:
    moment = time.time() - days * 86400
    for path in store.glob(pattern):
        if path.is_file():
            os.utime(path, (moment, moment))


@pytest.fixture
def two_runs(make_models: Any, pipeline: Any, tmp_path: Path) -> dict[str, str]:
    """Two runs of methods that share their spectra: run key by method."""
    models = make_models(num_experts=2, layers=1)
    found = {}
    for method in ("swudi", "swudi_a"):
        recipe = models.write_recipe(method, f"{method}.yml")
        found[method] = pipeline(recipe, tmp_path / method, store=str(tmp_path / "store")).run_key
    return found


def test_every_object_of_a_run_is_recorded(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    """A run that writes every kind of object: spectra, sums, parts and alignments."""
    models = make_models(num_experts=2, layers=2)
    recipe = models.write_recipe(
        "swudi",
        keep_sums=True,
        calibration={"svc": {"alpha": 0.5}},
        parameters={"alignment_rho": 0.5},
    )
    pipeline(recipe, tmp_path / "out", store=str(tmp_path / "store"))
    stored = {key for key in keys(tmp_path / "store") if key.startswith(FOLDERS)}
    assert {key.partition("/")[0] for key in stored} == set(FOLDERS)
    inventory = take_inventory(Store(str(tmp_path / "store")))
    (run,) = inventory.runs
    assert run.objects is not None and stored <= run.objects
    # a shard of norms has no spectra, so it writes no table
    assert all(key.startswith("parts/") and key.endswith(".arrow") for key in run.objects - stored)
    assert run.state == "finished" and run.facts["result"]["shards_done"] > 0
    assert set(inventory.objects) == stored | set(run.folder)
    assert verify_store(Store(str(tmp_path / "store"))).damaged == ()


def test_ls_and_du(two_runs: dict[str, str], command: Callable[..., Any], tmp_path: Path) -> None:
    listed = json.loads(command("cache", "ls", "--json").out)
    assert {(run["run"], run["method"], run["state"]) for run in listed["runs"]} == {
        (key, method, "finished") for method, key in two_runs.items()
    }
    for run in listed["runs"]:
        assert run["destination"] == str(tmp_path / run["method"]) and run["started"] <= run["finished"]
        assert len(run["experts"]) == 2 and 0 < run["own_bytes"] < run["num_bytes"]
    text = command("cache", "ls").out
    assert all(key[:12] in text for key in two_runs.values()) and "swudi_a" in text
    only = json.loads(command("cache", "ls", "--method", "swudi", "--json").out)
    assert [run["run"] for run in only["runs"]] == [two_runs["swudi"]]
    assert json.loads(command("cache", "ls", "--model", "expert7", "--json").out)["runs"] == []

    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != STORE_MARKER]
    total = sum(path.stat().st_size for path in files)
    for by in ("kind", "run", "method", "model"):
        found = json.loads(command("cache", "du", "--by", by, "--json").out)
        assert found["num_bytes"] == total
        assert by in command("cache", "du", "--by", by).out
    rows = {row["name"]: row for row in json.loads(command("cache", "du", "--json").out)["rows"]}
    assert (
        set(rows) == {"spectra", "measures", "parts", "runs"}
        and sum(row["num_bytes"] for row in rows.values()) == total
    )


def test_gc_by_run_keeps_shared_objects(
    two_runs: dict[str, str], command: Callable[..., Any], pipeline: Any, tmp_path: Path
) -> None:
    before = keys(tmp_path / "store")
    shared = {key for key in before if key.startswith("spectra/")}
    prefix = two_runs["swudi"][:10]
    planned = json.loads(command("cache", "gc", "--run", prefix, "--dry-run", "--json").out)
    assert keys(tmp_path / "store") == before
    done = json.loads(command("cache", "gc", "--run", prefix, "--json").out)
    after = keys(tmp_path / "store")
    assert done["runs"] == planned["runs"] == [two_runs["swudi"]]
    assert len(before - after) == done["num_objects"] == planned["num_objects"] > 0
    assert shared <= after and not any(two_runs["swudi"] in key for key in after)
    again = pipeline(tmp_path / "swudi_a.yml", tmp_path / "again", store=str(tmp_path / "store"))
    assert again.shards_done == 0, "the other run is complete"
    command("cache", "gc", "--run", two_runs["swudi_a"])
    assert keys(tmp_path / "store") == set()


def test_gc_by_age(two_runs: dict[str, str], command: Callable[..., Any], tmp_path: Path) -> None:
    store = tmp_path / "store"
    orphan, foreign = "spectra/ab/" + "ab" * 32 + ".arrow", "spectra/ab/" + "cd" * 32 + ".arrow"
    write_spectrum(Store(str(store)), orphan, examples.spectrum(3), provenance={})
    (store / foreign).write_bytes(b"the user's")
    make_old(store, 8)
    make_old(store, 1, f"runs/{two_runs['swudi_a']}/*")
    done = json.loads(command("cache", "gc", "--older-than", "7d", "--json").out)
    assert done["runs"] == [two_runs["swudi"]]
    left = keys(store)
    assert orphan not in left and foreign in left and done["kept_foreign"] == [foreign]
    assert any(key.startswith("spectra/") for key in left), "the more recent run uses them"
    assert command("cache", "gc", "--older-than", "sometime").code == 2
    text = command("cache", "gc", "--older-than", "1h").out
    assert "removed 1 run " in text and f"kept {foreign}: not written by Eigenmerge" in text
    assert keys(store) == {foreign}


def test_gc_keeps_an_active_run(make_models: Any, command: Callable[..., Any], tmp_path: Path) -> None:
    models = make_models(num_experts=2, layers=1)
    plan = make_plan(read_recipe(models.write_recipe("swudi")))
    place = tmp_path / "store"
    store = Store(str(place))
    with recorded_run(Run(plan, Store(str(place))), "out"):
        store.write(run_objects(plan)[0], b"incomplete")
        make_old(place, 30)
        os.utime(next(place.glob("claims/*")))  # its heartbeat
        assert take_inventory(store).runs[0].state == "running"
        kept = json.loads(command("cache", "gc", "--older-than", "7d", "--json").out)
        assert kept["num_objects"] == 0 and kept["kept_running"] == [plan.run_key]
        refused = command("cache", "gc", "--run", plan.run_key)
        assert refused.code == 1 and "is active" in refused.err and store.exists(run_objects(plan)[0])
    assert take_inventory(store).runs[0].state == "unfinished"
    collect_garbage(store, older_than=7 * 86400)
    assert keys(place) == set()


def test_without_superseded_sums_the_next_expert_still_costs_one_pass(
    make_models: Any, pipeline: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    models = make_models(num_experts=4, layers=1)
    experts, store = models.experts, tmp_path / "store"

    def merge(*chosen: int) -> Any:
        models.experts = [experts[index] for index in chosen]
        name = "-".join(map(str, chosen))
        return pipeline(models.write_recipe("swudi", f"{name}.yml", keep_sums=True), tmp_path / name, store=str(store))

    merge(0)
    merge(0, 1)
    merge(0, 2)
    before = {key for key in keys(store) if key.startswith("sums/")}
    done = json.loads(command("cache", "gc", "--superseded", "--json").out)
    after = {key for key in keys(store) if key.startswith("sums/")}
    assert done["num_objects"] == len(before - after) == len(before) // 3, "only the sums of one expert are removed"
    assert all(key.rpartition("/")[2].startswith("000002-") for key in after)
    result = merge(0, 1, 3)
    assert result.bytes_read == 2 * sum(tensor.nbytes for tensor in models.base_tensors.values())


def test_objects_of_killed_processes_are_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    mark_store(store)
    claim = hold_run(store, "a" * 64)
    dead = json.loads(store.read(next(iter(keys(store))))) | {"pid": 2**22 + 1}
    claim.release()
    store.write(f"claims/run-{'b' * 64}-000000000000.json", json.dumps(dead).encode())
    store.write("claims/notes.json", b"{}")
    half = ".eigenmerge-0123456789abcdef.partial"
    for folder in ("parts", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / half).write_bytes(b"half")
    done = collect_garbage(store)
    assert done.num_objects == 1 and done.num_abandoned == 1
    assert keys(store) == {"claims/notes.json"} and (tmp_path / "elsewhere" / half).exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "swap"])
def test_verify_finds_damage_of_every_kind(
    make_models: Any, pipeline: Any, command: Callable[..., Any], tmp_path: Path, damage: str
) -> None:
    models = make_models(num_experts=3, layers=2)
    store = tmp_path / "store"
    recipe = models.write_recipe("swudi", keep_sums=True, parameters={"alignment_rho": 0.5})
    first = pipeline(recipe, tmp_path / "a", store=str(store))
    assert command("cache", "verify").code == 0
    targets: dict[str, Path] = {}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name != STORE_MARKER:
            key = path.relative_to(store)
            targets.setdefault(key.parts[0] + path.suffix + ("" if key.parts[0] != "runs" else path.name), path)
    targets["parts.safetensors"] = max(
        store.glob("parts/*.safetensors")
    )  # the part of another record than the damaged one
    assert len(targets) == 9, sorted(targets)
    originals = {path: path.read_bytes() for path in store.rglob("*") if path.is_file() and path.name != STORE_MARKER}
    for path in targets.values():
        content = originals[path]
        middle = len(content) * 2 // 3
        other = next(p for p in originals if p.suffix == path.suffix and p.name != path.name)
        path.write_bytes(
            {
                "truncate": content[:middle],
                "flip": content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :],
                "empty": b"",
                "swap": originals[other],
            }[damage]
        )
    found = command("cache", "verify", "--json")
    assert found.code == 1, found.out
    reported = {entry["key"] for entry in json.loads(found.out)["damaged"]}
    expected = {str(path.relative_to(store)) for path in targets.values()}
    # A table of a shard does not contain its own key, and a changed bit in the padding of Arrow has no effect.
    if damage in ("swap", "flip"):
        expected = {key for key in expected if not (key.endswith(".arrow") and key.startswith(("parts/", "runs/")))}
    assert expected <= reported
    removed = command("cache", "verify", "--delete")
    assert removed.code == 0 and "damaged, removed" in removed.out
    assert command("cache", "verify").code == 0
    again = pipeline(recipe, tmp_path / "b", store=str(store))
    assert again.shards_done > 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert first.run_key == again.run_key


def test_foreign_and_uncommitted_objects(two_runs: dict[str, str], command: Callable[..., Any], tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "notes.txt").write_text("mine")
    next(store.glob("parts/*.json")).unlink()
    found = command("cache", "verify")
    assert found.code == 0 and "not checked: notes.txt" in found.out and "not checked: 1 incomplete part" in found.out


def test_a_place_that_is_no_store_is_refused(
    two_runs: dict[str, str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Its first sentence was "no damage", and `gc` removed what had names as in a store."""
    assert two_runs
    place = tmp_path / "store"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for arguments in (["ls"], ["du"], ["gc", "--older-than", "0s"], ["gc", "--dry-run"], ["verify", "--delete"]):
        for wrong, near in ((tmp_path, place), (place / "runs", place), (tmp_path / "nothing", None)):
            done = command("cache", *arguments, "--store", wrong)
            hint = f"did you mean {near}?" if near else "give the place that merges use with --store"
            assert done.code == 2 and f"{wrong}: no store here; {hint}" in done.err, done.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_dry_run_writes_nothing(two_runs: dict[str, str], command: Callable[..., Any], tmp_path: Path) -> None:
    place = tmp_path / "store"
    (place / STORE_MARKER).unlink()  # as a store of an earlier version
    before = {path: path.stat().st_mtime_ns for path in (place, *place.rglob("*"))}
    done = json.loads(command("cache", "gc", "--older-than", "0s", "--dry-run", "--json").out)
    assert sorted(done["runs"]) == sorted(two_runs.values()) and done["num_objects"] > 0
    assert {path: path.stat().st_mtime_ns for path in (place, *place.rglob("*"))} == before


def test_on_s3(make_models: Any, pipeline: Any, command: Callable[..., Any], tmp_path: Path, s3_root: Any) -> None:
    models = make_models(num_experts=2, layers=1)
    place = {"store": f"{s3_root.uri}/store", "storage_options": s3_root.storage_options}
    runs = {}
    for method in ("swudi", "swudi_a"):
        recipe = models.write_recipe(method, f"{method}.yml", **place)
        runs[method] = pipeline(recipe, tmp_path / method).run_key
    store = Store(place["store"], s3_root.storage_options)
    reach = ("--recipe", tmp_path / "swudi.yml")
    os.environ.pop("EIGENMERGE_STORE", None)  # the fixture of the command sets it
    listed = json.loads(command("cache", "ls", *reach, "--json").out)
    assert {run["run"] for run in listed["runs"]} == set(runs.values())
    assert s3_root.storage_options["secret"] not in json.dumps(
        [store.read(key).decode("latin1") for key in keys(store)]
    )
    upload = store.backend.call("create_multipart_upload", Key=store.backend.object_key("spectra/half"))  # pyright: ignore
    assert upload["UploadId"]
    assert command("cache", "gc", *reach, "--run", runs["swudi"]).code == 0
    target = next(key for key in sorted(keys(store)) if key.startswith("spectra/"))
    store.write(target, store.read(target)[:-100])
    found = command("cache", "verify", *reach)
    assert found.code == 1 and target in found.out
    assert command("cache", "verify", *reach, "--delete").code == 0
    assert not store.exists(target) and command("cache", "verify", *reach).code == 0
    assert store.remove_abandoned() == 1, "gc does not remove an upload of today, which may be active"


def test_the_record_hides_credentials(make_models: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=1, layers=1)
    recipe = models.recipe("swudi", storage_options={"s3": {"key": "AKIA-planted", "secret": "planted-secret"}})
    plan = make_plan(recipe_from_mapping(recipe))
    with recorded_run(Run(plan, Store(str(tmp_path / "store"))), "https://user:planted-password@host/out"):
        pass
    text = "".join(path.read_text() for path in (tmp_path / "store").rglob("*.json"))
    assert "planted" not in text and "host/out" in text
