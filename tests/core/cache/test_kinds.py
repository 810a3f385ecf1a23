"""The table of kinds: every key that is built has one kind, and every kind finds damage of its own objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from eigenmerge.core.cache.alignments import write_alignments
from eigenmerge.core.cache.expert_probes import write_probes
from eigenmerge.core.cache.kinds import (
    KINDS,
    Kind,
    deleted_together,
    deletion_order,
    divide_by_owner,
    is_ours,
    kind_of,
)
from eigenmerge.core.cache.reports import DecomposeReport
from eigenmerge.core.cache.runs import recorded_run
from eigenmerge.core.cache.sealed_tensors import write_sealed
from eigenmerge.core.cache.spectra.table import write_shard_table, write_spectra_table
from eigenmerge.core.cache.spectra.table_file import TableRow
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.cache.sweep_tables import SweepRow, write_best_recipe, write_sweep_table
from eigenmerge.core.coordination.claim_keys import claim_key, run_claim_key, spectra_claim_key
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.numerics.interference.expert_probes import Probes
from eigenmerge.core.planning.keys import alignment_key, calibration_key, probes_key, spectrum_key, sums_key
from eigenmerge.core.run import Run
from eigenmerge.core.storage.store import Store

from ..store_keys import long_key
from .examples import RUN_KEY, matrix, plan, real_shard, spectrum, write_part

SPECTRUM = long_key("spectra/w.arrow")
SUMS = long_key("sums/ab/000001-x.safetensors")
PART = long_key("parts/h.safetensors")
HASH = "ab" * 32


def fill(store: Store) -> None:
    """One object of every kind that is checked, as the code writes it."""
    part = real_shard(0, matrix("w", aligned=True))
    run = Run(plan(part), store)
    write_spectrum(store, SPECTRUM, spectrum(5), provenance={})
    write_sealed(store, SUMS, {"sum": torch.ones(3)}, {"form": "sum", "members": ["a"]})
    write_probes(store, SPECTRUM, Probes(torch.ones(1, 16, 3), torch.ones(1, 16, 4), torch.ones(1).double()))
    write_alignments(run.plan, store, [DecomposeReport(0, {SPECTRUM: 1.0}, 1, 0)])
    write_part(store, part, b"header--data")
    write_shard_table(store, part.part_key, [TableRow("w", SPECTRUM, spectrum(5))])
    with recorded_run(run, "out"):
        write_spectra_table(run)
    write_sweep_table(store, HASH, [SweepRow("c", {"exp_time": 1.0}, {"accuracy": 0.5})])
    write_best_recipe(store, HASH, "merge_method: swudi\n")


def objects(store: Store) -> dict[str, Kind | None]:
    return {info.key: kind_of(info.key) for info in store.list("")}


def test_every_kind_with_a_check_accepts_what_the_code_writes(place: Callable[[str], Store]) -> None:
    store = place("store")
    fill(store)
    found = objects(store)
    checked = {kind.name for kind in KINDS if kind.check is not None}
    assert {kind.name for kind in found.values() if kind is not None} == checked and None not in found.values()
    for key, kind in found.items():
        assert kind is not None and kind.check is not None
        kind.check(store, key)


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign"])
def test_every_kind_reports_damage(place: Callable[[str], Store], damage: str) -> None:
    store = place("store")
    fill(store)
    for key, kind in objects(store).items():
        assert kind is not None and kind.check is not None
        content = store.read(key)
        store.write(key, {"empty": b"", "cut": content[: len(content) // 2], "foreign": b"not ours"}[damage])
        with pytest.raises(CorruptObjectError):
            kind.check(store, key)
        store.write(key, content)
        store.delete([key])
        with pytest.raises(ObjectNotFoundError):
            kind.check(store, key)
        store.write(key, content)


def test_keys_of_every_builder_have_a_kind() -> None:
    spectral = spectrum_key({"kind": "svd"}, 1, "float32", "inputs", "[4, 3]")
    keys = {
        spectral: "spectrum",
        calibration_key(spectral, "filter"): "spectrum",
        alignment_key([spectral]): "alignment",
        probes_key(spectral): "probes of experts",
        sums_key(1, "float32", "base", "[4, 3]", ["a", "b"]): "sums",
        claim_key(PART): "claim",
        spectra_claim_key(PART): "claim",
        run_claim_key(RUN_KEY, "f" * 32): "claim",
    }
    for key, name in keys.items():
        kind = kind_of(key)
        assert kind is not None and kind.name == name


@pytest.mark.parametrize(
    "key",
    [
        "notes.txt",
        f"operators/ab/{HASH}/000002-{HASH}.safetensors",  # sums of an earlier version
        f"spectra/ab/{HASH}.txt",
        f"spectra/{HASH}.arrow",
        f"parts/{HASH}.safetensors.bak",
        f"parts/{HASH.upper()}.safetensors",
        "parts/model.safetensors",
        "spectra/ab/sound.arrow",
        f"runs/{HASH}/notes.txt",
        "runs/experiment-1/run.json",
        f"sums/ab/{HASH}/{HASH}.arrow",
        f"claims/{HASH}.txt",
        "claims/2024.json",
        "probes/data.bin",
        "spectra",
    ],
)
def test_other_objects_have_no_kind(key: str) -> None:
    assert kind_of(key) is None
    assert deleted_together(key) == (key,)


def test_a_key_has_at_most_one_kind(place: Callable[[str], Store]) -> None:
    store = place("store")
    fill(store)
    for key in [*objects(store), claim_key(PART), long_key("probes/p")]:
        assert len([kind.name for kind in KINDS if kind.includes(key)]) == 1


def test_what_the_code_writes_is_ours_and_other_content_is_not(place: Callable[[str], Store]) -> None:
    store = place("store")
    fill(store)
    keys = list(objects(store))
    assert divide_by_owner(store, keys, ()) == (keys, [])
    together = {key: [key] for key in keys} | {
        # a record proves that the part beside it is ours, and the two records of a run prove each other
        key: [other for other in keys if other.startswith((key.rpartition(".")[0], f"runs/{RUN_KEY}/"))]
        for key in keys
        if key.startswith(("parts/", f"runs/{RUN_KEY}/"))
    }
    for key, others in together.items():
        contents = {other: store.read(other) for other in others}
        for other in others:
            store.write(other, b'{"name": "the user\'s"}')
        assert not is_ours(store, key), key
        assert divide_by_owner(store, [key], {key}) == ([key], []), "the record of a run lists it"
        for other, content in contents.items():
            store.write(other, content)


def test_part_and_record_are_deleted_together_the_record_first() -> None:
    record, part, table = (long_key(f"parts/x.{suffix}") for suffix in ("json", "safetensors", "arrow"))
    assert deleted_together(part) == deleted_together(record) == (record, part)
    assert deleted_together(table) == (table,)
    assert deleted_together(SPECTRUM) == (SPECTRUM,)


def test_the_record_of_a_run_is_deleted_last() -> None:
    keys = [f"runs/{HASH}/{name}" for name in ("run.json", "objects.json", "spectra.arrow")]
    keys += [f"parts/{HASH}.safetensors", f"parts/{HASH}.json"]
    assert sorted(keys, key=deletion_order) == [
        f"parts/{HASH}.json",
        f"parts/{HASH}.safetensors",
        f"runs/{HASH}/objects.json",
        f"runs/{HASH}/spectra.arrow",
        f"runs/{HASH}/run.json",
    ]
