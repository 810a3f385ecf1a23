"""The table of kinds: every key that is built has one kind, and every kind finds damage of its own objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from eigenmerge.core.cache.alignments import write_alignments
from eigenmerge.core.cache.kinds import KINDS, Kind, deleted_together, deletion_order, kind_of
from eigenmerge.core.cache.reports import DecomposeReport
from eigenmerge.core.cache.runs import recorded_run
from eigenmerge.core.cache.sealed_tensors import write_sealed
from eigenmerge.core.cache.spectra.table import write_shard_table, write_spectra_table
from eigenmerge.core.cache.spectra.table_file import TableRow
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.coordination.claim_keys import claim_key, run_claim_key, spectra_claim_key
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.planning.keys import alignment_key, calibration_key, spectrum_key, sums_key
from eigenmerge.core.run import Run
from eigenmerge.core.storage.store import Store

from .examples import RUN_KEY, matrix, plan, shard, spectrum, write_part

SPECTRUM = "spectra/w.arrow"
SUMS = "sums/ab/000001-x.safetensors"


def fill(store: Store) -> None:
    """One object of every kind that is checked, as the code writes it."""
    part = shard(0, matrix("w", aligned=True))
    run = Run(plan(part), store)
    write_spectrum(store, SPECTRUM, spectrum(5), provenance={})
    write_sealed(store, SUMS, {"sum": torch.ones(3)}, {"form": "sum", "members": ["a"]})
    write_alignments(run.plan, store, [DecomposeReport(0, {SPECTRUM: 1.0}, 1, 0)])
    write_part(store, part, b"header--data")
    write_shard_table(store, part.part_key, [TableRow("w", SPECTRUM, spectrum(5))])
    with recorded_run(run, "out"):
        write_spectra_table(run)


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
        sums_key(1, "float32", "base", "[4, 3]", ["a", "b"]): "sums",
        claim_key("parts/h.safetensors"): "claim",
        spectra_claim_key("parts/h.safetensors"): "claim",
        run_claim_key(RUN_KEY, "f" * 32): "claim",
    }
    for key, name in keys.items():
        kind = kind_of(key)
        assert kind is not None and kind.name == name


@pytest.mark.parametrize(
    "key",
    [
        "notes.txt",
        "operators/ab/abc/000002-x.safetensors",  # sums of an earlier version
        "spectra/x.txt",
        "parts/x.safetensors.bak",
        "runs/x/notes.txt",
        "sums/x.arrow",
        "spectra",
    ],
)
def test_other_objects_have_no_kind(key: str) -> None:
    assert kind_of(key) is None
    assert deleted_together(key) == (key,)


def test_a_key_has_at_most_one_kind() -> None:
    for kind in KINDS:
        key = f"{kind.folder}x{kind.suffix}"
        assert [other.name for other in KINDS if other.includes(key)] == [kind.name]


def test_part_and_record_are_deleted_together_the_record_first() -> None:
    together = ("parts/x.json", "parts/x.safetensors")
    assert deleted_together("parts/x.safetensors") == deleted_together("parts/x.json") == together
    assert deleted_together("parts/x.arrow") == ("parts/x.arrow",)
    assert deleted_together(SPECTRUM) == (SPECTRUM,)


def test_the_record_of_a_run_is_deleted_last() -> None:
    keys = ["runs/r/run.json", "runs/r/objects.json", "runs/r/spectra.arrow", "parts/x.safetensors", "parts/x.json"]
    assert sorted(keys, key=deletion_order) == [
        "parts/x.json",
        "parts/x.safetensors",
        "runs/r/objects.json",
        "runs/r/spectra.arrow",
        "runs/r/run.json",
    ]
