"""Joining parts on one disk, against `cp` of the result. Headers are whole pages, as the parts' are."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import median

import pytest

from eigenmerge.core.formats.safetensors_header import HEADER_ALIGNMENT
from eigenmerge.core.storage.assembly.assemble_file import assemble_file
from eigenmerge.core.storage.store import Store

MIB = 2**20


@pytest.mark.benchmark
def test_local_assembly_costs_no_more_than_cp(tmp_path: Path) -> None:
    """At most 1.2 times `cp` of the result, medians of twenty tries each."""
    store = Store(str(tmp_path / "store"))
    for number in range(5):
        store.write(f"parts/{number}", bytes(100 * MIB))
    ranges = [(f"parts/{number}", HEADER_ALIGNMENT, 100 * MIB) for number in range(5)]
    assemble_file(store, "reference", b"h" * HEADER_ALIGNMENT, store, ranges, sha256="known")
    times: dict[str, list[float]] = {"cp": [], "assemble": []}
    copy = tmp_path / "copy"
    ways = {
        "cp": lambda: shutil.copyfile(tmp_path / "store" / "reference", copy),
        "assemble": lambda: assemble_file(store, "joined", b"h" * HEADER_ALIGNMENT, store, ranges, sha256="known"),
    }
    for number in range(20):
        for way in sorted(ways, reverse=bool(number % 2)):  # who comes second meets more unwritten pages
            started = time.perf_counter()
            ways[way]()
            times[way].append(time.perf_counter() - started)
            copy.unlink(missing_ok=True)
            store.delete(["joined"])
    print(f"cp {median(times['cp']):.3f} s, assemble {median(times['assemble']):.3f} s for 500 MiB")
    assert median(times["assemble"]) <= 1.2 * median(times["cp"])
