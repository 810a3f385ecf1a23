"""Small shards, plans, reports and spectra for the tests of the cache."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from eigenmerge.core.cache.parts import write_record
from eigenmerge.core.cache.reports import Origin, ShardReport, TensorReport
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.planning.plan import (
    LayerShard,
    MatrixView,
    ModelSummary,
    OutputFile,
    Plan,
    RunSettings,
    TensorPlan,
)
from eigenmerge.core.storage.store import Store

from ..store_keys import long_key

RUN_KEY = "0123abcd" * 8


def matrix(name: str, *, aligned: bool = False, key: str | None = None) -> TensorPlan:
    """A 2-D weight with one spectrum, spectra/<name>.arrow by default."""
    return TensorPlan(
        name,
        (4, 3),
        "F32",
        "merge",
        "2-D weight",
        None,
        method="swudi",
        spectrum_key=key or f"spectra/{name}.arrow",
        alignment_key="alignments/a.json" if aligned else None,
    )


def fused(name: str, *labels: str) -> TensorPlan:
    """A weight that holds several matrices, each with a spectrum, a calibration and kept sums."""
    views = tuple(
        MatrixView(
            label,
            index,
            index + 1,
            f"spectra/{name}-{label}.arrow",
            calibration_key=f"spectra/{name}-{label}-calibration.arrow",
            sums_key=f"sums/{name}-{label}/000002-x.safetensors",
        )
        for index, label in enumerate(labels)
    )
    return TensorPlan(name, (len(labels), 3), "F32", "merge", "fused", None, method="swudi", views=views)


def norm(name: str) -> TensorPlan:
    """A 1-D weight, which has no spectrum."""
    return TensorPlan(name, (3,), "F32", "mean", "1-D: mean delta", None)


def shard(index: int, *tensors: TensorPlan) -> LayerShard:
    return LayerShard(index, tensors, f"parts/{index}.safetensors", 0, 0, 0.0, 0)


def real_shard(index: int, *tensors: TensorPlan) -> LayerShard:
    """A shard whose keys have the form of those in a store."""
    renamed = [
        replace(
            tensor,
            spectrum_key=tensor.spectrum_key and long_key(tensor.spectrum_key),
            alignment_key=tensor.alignment_key and long_key(tensor.alignment_key),
        )
        for tensor in tensors
    ]
    return replace(shard(index, *renamed), part_key=long_key(f"parts/{index}.safetensors"))


def plan(*shards: LayerShard, settings: RunSettings | None = None, recipe: dict[str, object] | None = None) -> Plan:
    model = ModelSummary("base", "/models/base", "f0", 1, 1, "full")
    return Plan(
        RUN_KEY,
        recipe or {"merge_method": "swudi"},
        settings or RunSettings(),
        model,
        (replace(model, name="expert"),),
        shards,
        (OutputFile("model.safetensors", tuple(one.index for one in shards), 1),),
        (),
    )


def tensor_report(name: str, spectrum: Origin = "none", truncation_error: float | None = None) -> TensorReport:
    return TensorReport(name, "merge", "swudi", 0.1, "00", spectrum=spectrum, truncation_error=truncation_error)


def write_part(store: Store, owner: LayerShard, data: bytes, *, etag: str | None = None) -> ShardReport:
    """Write a part of any bytes and its record; the part's own etag by default."""
    store.write(owner.part_key, data)
    report = ShardReport(
        index=owner.index,
        part_key=owner.part_key,
        num_bytes=len(data),
        header_bytes=8,
        sha256=hashlib.sha256(data).hexdigest(),
        etag=store.info(owner.part_key).etag if etag is None else etag,
        seconds=1.0,
        bytes_read=100,
        tensors=tuple(tensor_report(tensor.name) for tensor in owner.tensors),
    )
    write_record(store, report)
    return report


def spectrum(
    directions: int, rows: int = 11, columns: int = 37, experts: int = 3, dtype: torch.dtype = torch.float32
) -> Spectrum:
    """A random spectrum with two blocks, statistics of every shape, and info that JSON represents only with effort."""
    generator = torch.Generator().manual_seed(directions)

    def rand(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype)

    return Spectrum(
        kind="interference",
        shape=(rows, columns),
        num_experts=experts,
        values=rand(directions).sort(descending=True).values,
        right=rand(directions, columns),
        left={"target": rand(directions, rows), "sum": rand(directions, rows)},
        statistics={
            "energy": rand(directions, dtype=torch.float64),
            "projection": rand(directions, experts, dtype=torch.float64),
            "expert": torch.arange(directions) % experts,
        },
        info={"route": "gram", "floor": 1e-9, "norms": [1.0, 2.0], "note": 'ß "x"', "limit": math.inf},
    )


def assert_same_numbers(found: Spectrum, expected: Spectrum) -> None:
    """Compare values and statistics, and everything of the vectors but their numbers."""
    assert (found.kind, found.shape, found.num_experts) == (expected.kind, expected.shape, expected.num_experts)
    assert dict(found.info) == dict(expected.info)
    assert found.left.keys() == expected.left.keys()
    assert found.right.shape == expected.right.shape
    assert found.statistics.keys() == expected.statistics.keys()
    assert_same_tensors([found.values], [expected.values])
    names = list(expected.statistics)
    assert_same_tensors([found.statistics[name] for name in names], [expected.statistics[name] for name in names])


def assert_same_spectrum(found: Spectrum, expected: Spectrum) -> None:
    assert_same_numbers(found, expected)
    names = list(expected.left)
    assert_same_tensors(
        [found.right, *(found.left[name] for name in names)], [expected.right, *(expected.left[name] for name in names)]
    )


def assert_same_tensors(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
