"""Joining parts on one disk, against `cp` of the result."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from eigenmerge.core.storage.assemble import assemble_file
from eigenmerge.core.storage.store import Store

MIB = 2**20


@pytest.mark.benchmark
def test_local_assembly_costs_no_more_than_cp(tmp_path: Path) -> None:
    """At most 1.2 times `cp` of the result, the better of five tries each."""
    store = Store(str(tmp_path / "store"))
    for number in range(5):
        store.write(f"parts/{number}", bytes(100 * MIB))
    ranges = [(f"parts/{number}", 100, 100 * MIB) for number in range(5)]
    assemble_file(store, "reference", b"h" * 4096, store, ranges, sha256="known")
    times: dict[str, list[float]] = {"cp": [], "assemble": []}
    for number in range(5):
        started = time.perf_counter()
        shutil.copyfile(tmp_path / "store" / "reference", tmp_path / f"copy{number}")
        times["cp"].append(time.perf_counter() - started)
        started = time.perf_counter()
        assemble_file(store, f"joined{number}", b"h" * 4096, store, ranges, sha256="known")
        times["assemble"].append(time.perf_counter() - started)
        (tmp_path / f"copy{number}").unlink()
        store.delete([f"joined{number}"])
    print(f"cp {min(times['cp']):.3f} s, assemble {min(times['assemble']):.3f} s for 500 MiB")
    assert min(times["assemble"]) <= 1.2 * min(times["cp"])
