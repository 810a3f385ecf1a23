"""FileHashes: the sha256 of each output file from its parts, in whichever order they are finished."""

from __future__ import annotations

import itertools
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import deserialize

from eigenmerge.core.errors import StoreError
from eigenmerge.core.output.file_hashes import FileHashes, file_entries, file_header
from eigenmerge.core.run import Run
from eigenmerge.core.storage.store import Store

from .examples import Checkpoint, adapter, buffer, make_checkpoint, norm, sha256, small_plan, weight


@pytest.fixture
def checkpoint() -> Checkpoint:
    files = [[[weight("a")], [norm("b")], [weight("c"), norm("d")]], [[weight("e")], [norm("f")]]]
    return make_checkpoint(small_plan(*files))


def run_of(checkpoint: Checkpoint, store: Store) -> Run:
    for report, part in zip(checkpoint.reports, checkpoint.parts, strict=True):
        store.write(report.part_key, part)
    return Run(checkpoint.plan, store)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 3, 1)])
def test_parts_in_any_order(checkpoint: Checkpoint, tmp_path: Path, order: tuple[int, ...]) -> None:
    with FileHashes(run_of(checkpoint, Store(str(tmp_path)))) as hashes:
        for index in order:
            hashes.add_part(checkpoint.reports[index])
        for file in checkpoint.plan.files:
            assert hashes.result(file) == sha256(checkpoint.files[file.name])


def test_parts_from_several_threads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = run_of(checkpoint, Store(str(tmp_path)))
    for order in itertools.islice(itertools.permutations(checkpoint.reports), 0, None, 7):
        with FileHashes(run) as hashes, ThreadPoolExecutor(4) as pool:
            list(pool.map(hashes.add_part, order))
            found = [hashes.result(file) for file in run.plan.files]
        assert found == [sha256(data) for data in checkpoint.files.values()]


def test_a_file_without_all_of_its_parts_has_no_hash(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with FileHashes(run_of(checkpoint, Store(str(tmp_path)))) as hashes:
        for index in (1, 2, 3, 4):
            hashes.add_part(checkpoint.reports[index])
        first, second = checkpoint.plan.files
        assert hashes.result(first) is None
        assert hashes.result(second) == sha256(checkpoint.files[second.name])


def test_parts_of_a_remote_store_are_not_read(checkpoint: Checkpoint) -> None:
    run = Run(checkpoint.plan, Store(f"memory://{uuid.uuid4().hex}"))  # without any part
    with FileHashes(run) as hashes:
        for report in checkpoint.reports:
            hashes.add_part(report)
        assert [hashes.result(file) for file in run.plan.files] == [None, None]


def test_a_part_that_is_gone_is_an_error_of_the_result(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = run_of(checkpoint, Store(str(tmp_path)))
    run.store.delete([checkpoint.reports[4].part_key])
    with FileHashes(run) as hashes:
        for report in checkpoint.reports:
            hashes.add_part(report)
        first, second = run.plan.files
        assert hashes.result(first) == sha256(checkpoint.files[first.name])
        with pytest.raises(StoreError, match="parts/4"):
            hashes.result(second)


def test_the_block_may_end_before_the_results_are_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A run that failed leaves the block without waiting for the hashes."""
    run = run_of(checkpoint, Store(str(tmp_path)))
    with pytest.raises(KeyError), FileHashes(run) as hashes:
        hashes.add_part(checkpoint.reports[0])
        raise KeyError


def test_the_header_lists_the_stored_tensors_in_the_order_of_their_bytes() -> None:
    plan = small_plan([[buffer("steps"), weight("a")], [adapter("w")]])
    (file,) = plan.files
    entries = file_entries(plan, file)
    assert [entry.name for entry in entries] == [
        "steps",
        "a",
        "base_model.model.w.lora_A.weight",
        "base_model.model.w.lora_B.weight",
    ]
    header = file_header(plan, file)
    tensors = deserialize(header + bytes(file.num_bytes - len(header)))
    assert {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in tensors} == {
        entry.name: (entry.dtype, entry.shape) for entry in entries
    }
