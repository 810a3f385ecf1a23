"""Packing tensors into shards and files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.formats.dtypes import element_bytes
from eigenmerge.core.formats.safetensors_header import build_header, parse_header
from eigenmerge.core.planning.plan import TensorPlan
from eigenmerge.core.planning.shards import (
    default_shard_seconds,
    output_entries,
    output_header,
    pack_tensors,
    written_bytes,
)
from eigenmerge.core.storage.assembly.s3_concatenate import SMALLEST_PART_BYTES, SentPart, plan_parts

DTYPES = st.sampled_from(["F32", "BF16", "I64", "BOOL", "F16"])


def tensor(name: str, shape: tuple[int, ...] = (4, 4), dtype: str = "F32", flops: float = 0.0) -> TensorPlan:
    return TensorPlan(name, shape, dtype, "copy", "", None, flops=flops)


tensor_lists = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 40), DTYPES, st.floats(0, 1e6)),
    min_size=1,
    max_size=30,
    unique_by=lambda t: t[0],
).map(lambda rows: [tensor(f"layers.{i}.w", (size,), dtype, flops) for i, size, dtype, flops in rows])


@settings(deadline=None, max_examples=150)
@given(tensor_lists, st.integers(1, 400), st.integers(1, 400))
def test_every_tensor_is_stored_once_in_order_and_aligned(
    tensors: list[TensorPlan], file_bytes: int, shard_bytes: int
) -> None:
    packing = pack_tensors(tensors, file_bytes, shard_bytes)
    packed = [one.name for shard in packing.shards for one in shard]
    assert sorted(packed) == sorted(one.name for one in tensors)
    assert [index for file in packing.files for index in file.shards] == list(range(len(packing.shards)))
    for file in packing.files:
        members = [one for index in file.shards for one in packing.shards[index]]
        entries = [entry for one in members for entry in output_entries(one)]
        data = sum(entry.num_bytes for entry in entries)
        assert data <= file_bytes or len(members) == 1
        header = build_header({one.name: (one.out_dtype, one.shape) for one in members}, {"format": "pt"})
        assert file.num_bytes == len(header) + data
        offset = 0
        for one, entry in zip(members, entries, strict=True):
            assert offset % element_bytes(one.out_dtype) == 0
            offset += entry.num_bytes
    for shard in packing.shards:
        assert sum(output_entries(one)[0].num_bytes for one in shard) <= shard_bytes or len(shard) == 1


def test_one_file_has_the_plain_name_and_several_are_numbered() -> None:
    tensors = [tensor(f"layers.{index}.w") for index in range(12)]
    assert [file.name for file in pack_tensors(tensors, 10**9).files] == ["model.safetensors"]
    files = pack_tensors(tensors, 5 * 64).files
    assert [file.name for file in files] == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def test_layers_are_ordered_by_number() -> None:
    packing = pack_tensors([tensor(f"layers.{index}.w") for index in (10, 2, 1)], 10**9)
    assert [one.name for shard in packing.shards for one in shard] == ["layers.1.w", "layers.2.w", "layers.10.w"]


def test_expensive_tensors_do_not_share_a_shard() -> None:
    heavy = [tensor(f"layers.{index}.w", flops=1e12) for index in range(8)]
    light = [tensor(f"layers.{index}.n", flops=1.0) for index in range(8)]
    packing = pack_tensors(heavy + light, 10**9)
    assert all(sum(one.flops > 1 for one in shard) <= 1 for shard in packing.shards)
    assert len(packing.shards) <= 16


@pytest.mark.parametrize(
    ("blocks", "hidden", "inner", "kv", "vocabulary"),
    [(24, 896, 4864, 128, 151936), (16, 2048, 8192, 512, 128256), (32, 4096, 14336, 1024, 128256)],
    ids=["0.5B", "1B", "8B"],
)
def test_almost_all_bytes_are_copied_on_the_s3_server(
    llama_tensors: Any, blocks: int, hidden: int, inner: int, kv: int, vocabulary: int
) -> None:
    """S3 copies no part below 5 MiB: norms and narrow projections share a shard with what follows them."""
    shapes = llama_tensors(blocks, hidden=hidden, inner=inner, vocabulary=vocabulary, kv=kv)
    flops = {name: 0.0 if vocabulary in shape else float(max(shape)) ** 3 for name, shape in shapes.items()}
    tensors = [tensor(name, shape, "BF16", flops=flops[name]) for name, shape in shapes.items()]
    packing = pack_tensors(tensors, 5 * 10**9)
    sizes = [sum(map(written_bytes, shard)) for shard in packing.shards]
    through = 0
    for file in packing.files:
        ranges = [(str(index), 0, sizes[index]) for index in file.shards]
        parts = plan_parts(b" " * (file.num_bytes - sum(sizes[index] for index in file.shards)), ranges)
        through += sum(part.num_bytes for part in parts if isinstance(part, SentPart))
    assert through <= len(packing.files) * SMALLEST_PART_BYTES
    assert 20 < len(packing.shards) < 500


def test_a_large_model_has_a_few_hundred_shards(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    names = llama_tensors(80, hidden=8192, inner=28672, vocabulary=128256, kv=1024)
    plan = plan_of(
        "merge_method: swudi\nbase_model: base\nmodels: [a]",
        *(model(name, names, dtype="BF16") for name in ("base", "a")),
    )
    assert 100 < len(plan.shards) < 500
    assert max(shard.bytes_written for shard in plan.shards if len(shard.tensors) > 1) < 2**30
    assert plan.bytes_written == pytest.approx(2 * 70.55e9, rel=0.01)
    assert all(file.num_bytes < 5.001e9 for file in plan.files)


def test_the_number_of_shards_follows_the_work() -> None:
    limit = default_shard_seconds
    assert limit(0.0) == 0.0 and limit(0.2) == 0.05, "four shards"
    assert limit(1.5) == 0.25 and limit(8.0) == 1.0, "six, eight"
    assert limit(100.0) == 2.0 and limit(4e6) == 2e4, "fifty, two hundred"


def test_a_short_merge_has_a_few_shards(llama_tensors: Any) -> None:
    small = llama_tensors(4, hidden=256, inner=688, vocabulary=1024, kv=256)
    larger = llama_tensors(8, hidden=1024, inner=4096, vocabulary=32000, kv=1024)
    counts: list[int] = []
    for shapes in (small, larger):
        plans = [tensor(name, shape, "BF16") for name, shape in shapes.items()]
        plans = [replace(one, bytes_read=4 * written_bytes(one)) for one in plans]
        counts.append(len(pack_tensors(plans, 5 * 10**9).shards))
    assert 4 <= counts[0] <= 8 and 5 <= counts[1] <= 12


def test_names_of_any_script_in_the_header() -> None:
    one = tensor("слой.0.\u2028w")
    header = output_header(output_entries(one))
    parsed = parse_header(header + bytes(64), len(header) + 64, "x")
    assert list(parsed.tensors) == [one.name] and parsed.metadata == {"format": "pt"}
    assert pack_tensors([one], 10**9).files[0].num_bytes == len(header) + 64
