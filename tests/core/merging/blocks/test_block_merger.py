"""Merging block by block gives the bytes, and raises the errors, of merging whole tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import CheckpointError, NonFiniteError
from eigenmerge.core.listing import FileVersion, TensorSource
from eigenmerge.core.merging.tensor_merger import TensorMerger
from eigenmerge.core.planning.cost.block_projection import plan_blocks
from eigenmerge.core.planning.plan import ExpertTensor, RunSettings, TensorPlan
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.store import Store

from ..examples import plan, random, write_tensor

SHAPE = (587, 509)  # more than one block of every size, and the last one is no multiple of a vector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blocks")


def stored(folder: Path, dtype: torch.dtype, shape: Sequence[int] = SHAPE, num_experts: int = 3) -> list[TensorSource]:
    """The base and experts that differ from it by a hundredth: many differences tie where 16 bits are stored."""
    base = random(1, *shape)
    tensors = [base, *(base + random(seed, *shape, size=0.01) for seed in range(2, 2 + num_experts))]
    name = f"{dtype}-{list(shape)}-{num_experts}"
    paths = [folder / name / f"{index}.safetensors" for index in range(len(tensors))]
    return [write_tensor(path, tensor.to(dtype)) for path, tensor in zip(paths, tensors, strict=True)]


def plan_of(sources: Sequence[TensorSource], expert: Mapping[str, object] | None = None, **keys: Any) -> TensorPlan:
    """A merge of the sources, the first of which is the base; it is merged in blocks."""
    base, *others = sources
    experts = [
        ExpertTensor(index, source, parameters={"weight": 0.4 + 0.3 * index} | dict(expert or {}))
        for index, source in enumerate(others)
    ]
    return replace(plan(experts, base.shape, base, **keys), in_blocks=True)


def bytes_of(tensor: TensorPlan, tmp_path: Path, **settings: Any) -> bytes:
    merger = TensorMerger(RunSettings(**settings), Store(str(tmp_path / "store")), TensorReader())
    data, report = merger.merge(tensor)
    assert report.name == tensor.name
    return bytes(data)


def test_measures_of_blocks_are_those_of_whole_tensors(folder: Path, tmp_path: Path) -> None:
    """The same 8192 entries are sampled: the squared norm is within five times sqrt(2 / 8192)."""
    sources = stored(folder, torch.float32)
    found = []
    for tensor in (plan_of(sources, method="linear"), replace(plan_of(sources, method="linear"), in_blocks=False)):
        merger = TensorMerger(RunSettings(), Store(str(tmp_path / "store")), TensorReader(), measures=True)
        found.append(merger.merge(tensor)[1].measures)
    assert found[0] is not None and found[0] == found[1]
    reader = TensorReader()
    base, expert = (reader.read(source).double() for source in sources[:2])
    assert found[0].squares[0] == pytest.approx(float((expert - base).square().sum()), rel=0.078)


def assert_equal_bytes(tensor: TensorPlan, tmp_path: Path, **settings: Any) -> None:
    assert tensor.in_blocks
    found = bytes_of(tensor, tmp_path, **settings)
    assert found == bytes_of(replace(tensor, in_blocks=False), tmp_path, **settings)
    assert any(found)


CASES: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("linear", {}, {}),
    ("linear", {"normalize": False}, {}),
    ("average", {"scale": 0.7}, {}),
    ("task_arithmetic", {"lambda": 0.7}, {}),
    ("task_arithmetic", {"normalize": True}, {}),
    ("ties", {}, {"density": 0.3}),
    ("ties", {"normalize": False, "rescale": True}, {"density": 0.3}),
    ("ties", {}, {"density": 0.0}),
    ("ties", {}, {"density": 1.0}),
    ("dare_linear", {}, {"density": 0.4}),
    ("dare_linear", {"rescale": False}, {"density": 0.4}),
    ("dare_ties", {"normalize": True}, {"density": 0.4}),
    ("dare_ties", {"rescale": False}, {"density": 1.0}),
    ("breadcrumbs", {}, {"density": 0.5, "gamma": 0.05}),
    ("breadcrumbs_ties", {"rescale": True}, {"density": 0.9, "gamma": 0.2}),
    ("ram", {}, {}),
    ("della", {}, {"density": 0.4, "epsilon": 0.2}),
    ("della_linear", {"rescale": False}, {"density": 0.7}),
    ("della", {}, {"density": 1.0}),
    ("della", {"normalize": False}, {"density": 0.0}),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("method", "parameters", "expert"), CASES)
def test_bytes_of_every_method(
    folder: Path,
    tmp_path: Path,
    dtype: torch.dtype,
    method: str,
    parameters: dict[str, object],
    expert: dict[str, object],
) -> None:
    given = {} if method == "ram" else expert
    tensor = plan_of(stored(folder, dtype), given, method=method, parameters=parameters, out_dtype="BF16")
    if method == "ram":
        tensor = replace(tensor, experts=tuple(replace(one, parameters={}) for one in tensor.experts))
    assert_equal_bytes(tensor, tmp_path, seed=7)


@pytest.mark.parametrize(("method", "keys"), [("nearswap", {"parameters": {"t": 0.005}}), ("passthrough", {})])
def test_methods_on_one_expert(folder: Path, tmp_path: Path, method: str, keys: dict[str, Any]) -> None:
    tensor = plan_of(stored(folder, torch.float16)[:2], method=method, **keys)
    assert_equal_bytes(replace(tensor, experts=(replace(tensor.experts[0], parameters={}),)), tmp_path)


@pytest.mark.parametrize("out_dtype", ["F32", "F16", "F64"])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "della_linear", "linear"])
def test_float64(folder: Path, tmp_path: Path, method: str, out_dtype: str) -> None:
    expert: dict[str, object] = {} if method == "linear" else {"density": 0.5}
    tensor = plan_of(stored(folder, torch.float64), expert, method=method, out_dtype=out_dtype)
    assert_equal_bytes(tensor, tmp_path, arithmetic="float64")


@pytest.mark.parametrize("shape", [(70001,), (3, 41, 5, 127), (1, 65537), (65537, 1)])
@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_shapes(folder: Path, tmp_path: Path, method: str, shape: tuple[int, ...]) -> None:
    sources = stored(folder, torch.bfloat16, shape, num_experts=2)
    assert_equal_bytes(plan_of(sources, {"density": 0.5}, method=method, out_dtype="BF16"), tmp_path)


@pytest.mark.parametrize("shape", [(70001, 1), (3, 40009), (29, 4001)])
def test_rows_that_end_within_a_block(folder: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    sources = stored(folder, torch.bfloat16, shape, num_experts=2)
    assert_equal_bytes(plan_of(sources, {"density": 0.5}, method="della", out_dtype="BF16"), tmp_path)


def test_dtypes_may_differ(folder: Path, tmp_path: Path) -> None:
    wide, narrow = stored(folder, torch.float32), stored(folder, torch.bfloat16)
    tensor = plan_of([wide[0], narrow[1], wide[2]], {"density": 0.5}, method="ties")
    rounded = replace(tensor.experts[0], rounded=True)
    assert_equal_bytes(tensor, tmp_path)
    assert_equal_bytes(replace(tensor, experts=(rounded, tensor.experts[1])), tmp_path)
    half = stored(folder, torch.float16)
    mixed = [narrow[0], half[1], wide[2], half[3]]
    assert_equal_bytes(plan_of(mixed, {"density": 0.5}, method="breadcrumbs_ties", out_dtype="F16"), tmp_path)
    assert_equal_bytes(plan_of(half, {"density": 0.2}, method="ties", out_dtype="F8_E4M3"), tmp_path)


def test_the_base_among_the_experts(folder: Path, tmp_path: Path) -> None:
    sources = stored(folder, torch.bfloat16)
    for method, expert in (("ties", {"density": 0.5}), ("linear", {}), ("average", {})):
        tensor = plan_of([sources[0], sources[1], sources[0], sources[2]], expert, method=method)
        experts = [replace(one, is_base=index == 1) for index, one in enumerate(tensor.experts)]
        assert_equal_bytes(replace(tensor, experts=tuple(experts)), tmp_path)


def test_mean_and_copy(folder: Path, tmp_path: Path) -> None:
    sources = stored(folder, torch.bfloat16)
    assert_equal_bytes(plan_of(sources, action="mean", parameters={"scale": 0.5}), tmp_path)
    assert_equal_bytes(replace(plan_of(sources, action="mean"), base=None), tmp_path)
    for out_dtype in ("BF16", "F32", "F16"):
        assert_equal_bytes(plan_of(sources[:1], action="copy", out_dtype=out_dtype), tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "linear", "mean"])
def test_errors_of_inputs_that_are_not_finite(
    folder: Path, tmp_path: Path, method: str, place: int, value: float
) -> None:
    sources = stored(folder, torch.bfloat16)
    bad = random(9, *SHAPE).bfloat16()
    bad[3, 5] = bad[-1, -1] = value
    sources[place] = write_tensor(tmp_path / "bad.safetensors", bad)
    density = {} if method in ("linear", "mean") else {"density": 0.3}
    keys = {"action": "mean"} if method == "mean" else {"method": method}
    tensor = plan_of(sources, density, **keys)
    if method == "linear" and place == 0:
        assert_equal_bytes(tensor, tmp_path)  # the base is no input of this method
        return
    messages: list[str] = []
    for one in (tensor, replace(tensor, in_blocks=False)):
        with pytest.raises(NonFiniteError, match="has 2 NaN or Inf among") as raised:
            bytes_of(one, tmp_path)
        assert raised.value.source == str(tmp_path / "bad.safetensors")
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    kept = bytes_of(tensor, tmp_path, allow_nonfinite=True) if place else b""
    assert kept == (bytes_of(replace(tensor, in_blocks=False), tmp_path, allow_nonfinite=True) if place else b"")


@pytest.mark.parametrize(("out_dtype", "factor"), [("F16", 1e4), ("F32", 1e38)])
def test_errors_of_results_that_do_not_fit(folder: Path, tmp_path: Path, out_dtype: str, factor: float) -> None:
    tensor = plan_of(stored(folder, torch.float32), method="linear", out_dtype=out_dtype)
    experts = [replace(one, parameters={"weight": factor}) for one in tensor.experts]
    tensor = replace(tensor, experts=tuple(experts), parameters={"normalize": False})
    messages: list[str] = []
    for one in (tensor, replace(tensor, in_blocks=False)):
        with pytest.raises(NonFiniteError, match="merged tensor") as raised:
            bytes_of(one, tmp_path)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_a_file_that_changes_is_an_error(folder: Path, tmp_path: Path) -> None:
    sources = stored(folder, torch.bfloat16)
    changed = replace(sources[1], file=FileVersion(size=Path(sources[1].uri).stat().st_size + 1, stat=(0, 0, 0)))
    with pytest.raises(CheckpointError, match="bytes, and had"):
        bytes_of(plan_of([sources[0], changed], method="average"), tmp_path)


def test_tensors_of_a_remote_store(folder: Path, tmp_path: Path) -> None:
    sources = stored(folder, torch.bfloat16)
    store = Store("memory://blocks")
    remote: list[TensorSource] = []
    for index, source in enumerate(sources):
        store.write(f"{index}.safetensors", Path(source.uri).read_bytes())
        remote.append(replace(source, uri=f"memory://blocks/{index}.safetensors"))
    for method, expert in (("ties", {"density": 0.5}), ("linear", {})):
        local = bytes_of(plan_of(sources, expert, method=method), tmp_path)
        assert bytes_of(plan_of(remote, expert, method=method), tmp_path) == local


def test_bytes_are_counted_once(folder: Path, tmp_path: Path) -> None:
    sources = stored(folder, torch.bfloat16)
    reader = TensorReader()
    merger = TensorMerger(RunSettings(), Store(str(tmp_path / "store")), reader)
    merger.merge(plan_of(sources, {"density": 0.5}, method="ties"))
    assert reader.bytes_read == sum(source.num_bytes for source in sources)


def test_which_tensors_are_planned_in_blocks(folder: Path) -> None:
    sources = stored(folder, torch.bfloat16)
    large = replace(plan_of(sources, {"density": 0.5}, method="ties"), in_blocks=False, peak_bytes=10**9)
    planned = plan_blocks(large, RunSettings())
    assert planned.in_blocks and planned.peak_bytes < 10**8
    assert not plan_blocks(large, RunSettings(device="cuda")).in_blocks
    assert not plan_blocks(replace(large, peak_bytes=10**6), RunSettings()).in_blocks, "whole tensors need less"
    assert not plan_blocks(replace(large, method="slerp", parameters={"t": 0.5}), RunSettings()).in_blocks
    assert plan_blocks(replace(large, method="della"), RunSettings()).in_blocks
    stacked = [replace(one, shape=(1, *SHAPE)) for one in sources]
    stack = replace(plan_of(stacked, {"density": 0.5}, method="ties"), in_blocks=False, peak_bytes=10**9)
    assert plan_blocks(stack, RunSettings()).in_blocks
    assert not plan_blocks(replace(stack, method="della"), RunSettings()).in_blocks, "its rows are not contiguous"
    assert not plan_blocks(replace(large, base_rows=((0, 0, 5),)), RunSettings()).in_blocks
    few = [replace(one, shape=(16, 16)) for one in sources]
    assert not plan_blocks(replace(large, shape=(16, 16), base=few[0]), RunSettings()).in_blocks
