"""TensorMerger: the bytes and the report of one tensor for each action, dtype and form of storage."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.cache.reports import TensorReport
from eigenmerge.core.errors import NonFiniteError
from eigenmerge.core.merging.tensor_merger import TensorMerger
from eigenmerge.core.planning.plan import AdapterFactors, ExpertTensor, MatrixView, RunSettings, TensorPlan
from eigenmerge.core.planning.shards import output_entries
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.store import Store
from eigenmerge.core.storage.torch_dtypes import safetensors_dtype, torch_dtype

from .examples import NAME, Weight, plan, random, write_lora, write_tensor

KEY = "spectra/a.arrow"
FACTORS = AdapterFactors(3, "w.lora_A.weight", "w.lora_B.weight")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def merger_of(store: Store, **settings: Any) -> TensorMerger:
    return TensorMerger(RunSettings(**settings), store, TensorReader())


def merge(store: Store, tensor: TensorPlan, **settings: Any) -> tuple[list[torch.Tensor], TensorReport]:
    """The stored tensors, read back from the bytes, and the report."""
    data, report = merger_of(store, **settings).merge(tensor)
    assert report.name == tensor.name and report.sha256 == hashlib.sha256(data).hexdigest()
    found, start = [], 0
    for entry in output_entries(tensor):
        piece = bytearray(data[start : start + entry.num_bytes])
        start += entry.num_bytes
        dtype = torch_dtype(entry.dtype)
        found.append((torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)).view(entry.shape))
    assert start == len(data)
    return found, report


def merge_one(store: Store, tensor: TensorPlan, **settings: Any) -> tuple[torch.Tensor, TensorReport]:
    (found,), report = merge(store, tensor, **settings)
    return found, report


class TestCopy:
    """The action "copy": the bytes of the base."""

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16, torch.float32])
    def test_bytes_of_any_dtype_stay(self, store: Store, tmp_path: Path, dtype: torch.dtype) -> None:
        base = (10 * random(1, 3, 4)).to(dtype)
        source = write_tensor(tmp_path / "base.safetensors", base)
        tensor = plan((), (3, 4), source, action="copy", out_dtype=safetensors_dtype(dtype))
        found, report = merge_one(store, tensor)
        assert torch.equal(found, base)
        assert (report.action, report.method, report.rank, report.spectrum) == ("copy", None, None, "none")

    def test_values_are_not_checked(self, store: Store, tmp_path: Path) -> None:
        base = torch.tensor([math.nan, math.inf, 1e38])
        source = write_tensor(tmp_path / "base.safetensors", base)
        found, _ = merge_one(store, plan((), (3,), source, action="copy", out_dtype="F16"))
        assert found.isnan().tolist() == [True, False, False] and found.isinf().tolist() == [False, True, True]

    @pytest.mark.parametrize("shape", [(), (1,), (0, 6)])
    def test_scalars_and_empty_tensors(self, store: Store, tmp_path: Path, shape: tuple[int, ...]) -> None:
        source = write_tensor(tmp_path / "base.safetensors", torch.ones(shape))
        found, _ = merge_one(store, plan((), shape, source, action="copy"))
        assert torch.equal(found, torch.ones(shape))


class TestMean:
    """The action "mean": base + scale * mean of the weighted deltas."""

    @pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 2, 2)])
    def test_scale_and_weights(self, store: Store, tmp_path: Path, shape: tuple[int, ...]) -> None:
        weight = Weight.random(tmp_path, *shape, num_experts=2)
        assert weight.base is not None
        found, report = merge_one(store, weight.plan(action="mean", weights=(1.0, 3.0), parameters={"scale": 0.5}))
        torch.testing.assert_close(found, weight.base + 0.25 * (weight.deltas[0] + 3.0 * weight.deltas[1]))
        assert report.action == "mean" and report.spectrum == "none"

    def test_without_a_base_it_is_the_mean_of_the_experts(self, store: Store, tmp_path: Path) -> None:
        weight = Weight(tmp_path, None, [random(1, 5), random(2, 5)])
        found, _ = merge_one(store, weight.plan(action="mean"))
        torch.testing.assert_close(found, (weight.experts[0] + weight.experts[1]) / 2)

    def test_a_kept_sum_is_read_instead_of_the_experts(self, store: Store, tmp_path: Path) -> None:
        weight = Weight.random(tmp_path, 5, num_experts=2)
        tensor = weight.plan(action="mean", sums_key="sums/w/000002-x.safetensors", members=("a", "b"))
        first, _ = merge_one(store, tensor)
        merger = merger_of(store)
        data, _ = merger.merge(tensor)
        assert bytes(data) == first.numpy().tobytes()
        assert merger.kept_bytes_read == store.info("sums/w/000002-x.safetensors").size


class TestMerge:
    """The action "merge", with direct and spectral methods."""

    @pytest.mark.parametrize(
        ("method", "parameters"),
        [("average", {}), ("ties", {"density": 0.5}), ("swudi_a", {}), ("swudi", {"exp_time": 9.0, "scale": 0.5})],
    )
    def test_it_equals_the_tensor_level_call(
        self, store: Store, tmp_path: Path, method: str, parameters: dict[str, Any]
    ) -> None:
        weight = Weight.random(tmp_path, 8, 6)
        assert weight.base is not None
        shared = {name: value for name, value in parameters.items() if name != "density"}
        tensor = weight.plan(density=parameters.get("density"), method=method, parameters=shared, spectrum_key=KEY)
        found, report = merge_one(store, tensor)
        expected = weight.base + merge_task_vectors(weight.deltas, method=method, base=weight.base, **parameters)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (report.action, report.method) == ("merge", method)

    def test_facts_of_a_spectral_method(self, store: Store, tmp_path: Path) -> None:
        tensor = Weight.random(tmp_path, 8, 6).plan(method="swudi", parameters={"rank_ratio": 0.5}, spectrum_key=KEY)
        _, first = merge_one(store, tensor)
        _, second = merge_one(store, tensor)
        assert (first.rank, first.spectrum_key, first.spectrum, second.spectrum) == (3, KEY, "computed", "reused")
        assert first.energy is not None and 0.5 < first.energy < 1.0
        assert first.sha256 == second.sha256 and first.truncation_error is None

    def test_a_direct_method_has_no_spectrum(self, store: Store, tmp_path: Path) -> None:
        _, report = merge_one(store, Weight.random(tmp_path, 4, 4).plan(method="average"))
        assert (report.rank, report.energy, report.spectrum, report.spectrum_key) == (None, None, "none", None)

    def test_a_convolution_keeps_its_shape(self, store: Store, tmp_path: Path) -> None:
        weight = Weight.random(tmp_path, 4, 3, 2, 2)
        assert weight.base is not None
        found, _ = merge_one(store, weight.plan(method="swudi", spectrum_key=KEY, matrix_shape=(4, 12)))
        delta = merge_task_vectors([delta.reshape(4, 12) for delta in weight.deltas]).reshape(4, 3, 2, 2)
        torch.testing.assert_close(found, weight.base + delta, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_matrices_of_a_fused_weight_are_merged_by_themselves(self, store: Store, tmp_path: Path, axis: int) -> None:
        weight = Weight.random(tmp_path, *((12, 4) if axis == 0 else (4, 12)))
        assert weight.base is not None
        views = tuple(
            MatrixView(label, 4 * index, 4 * index + 4, f"spectra/{label}.arrow", axis)
            for index, label in enumerate("qkv")
        )
        tensor = weight.plan(method="swudi", parameters={"rank_ratio": 0.5}, views=views)
        found, report = merge_one(store, tensor)
        parts = [
            merge_task_vectors([delta.narrow(axis, view.start, 4) for delta in weight.deltas], rank_ratio=0.5)
            for view in views
        ]
        torch.testing.assert_close(found, weight.base + torch.cat(parts, axis), rtol=1e-4, atol=1e-5)
        assert (report.rank, report.spectrum_key) == (6, "spectra/q.arrow")
        merger = merger_of(store)
        values, origin = merger.largest_values(tensor)
        assert values.keys() == {view.spectrum_key for view in views} and origin == "reused"
        assert all(0 < value < 4 for value in values.values()), "at most one for each expert"

    def test_notes_of_damaged_objects_and_rows_of_the_table(self, store: Store, tmp_path: Path) -> None:
        tensor = Weight.random(tmp_path, 4, 4).plan(
            method="swudi", spectrum_key=KEY, sums_key="sums/w/000003-x.safetensors", members=("a", "b", "c")
        )
        store.write(KEY, b"")
        store.write("sums/w/000003-x.safetensors", b"")
        merger = merger_of(store)
        merger.merge(tensor)
        assert len(merger.notes) == 2 and [row.name for row in merger.spectra_rows] == [NAME]


class TestOutputDtype:
    """The cast to the output dtype."""

    @pytest.mark.parametrize("name", ["BF16", "F16", "F64"])
    def test_the_sum_is_computed_before_the_cast(self, store: Store, tmp_path: Path, name: str) -> None:
        base, delta = torch.full((2, 2), 256.0), torch.full((2, 2), 0.75)
        weight = Weight(tmp_path, base.bfloat16(), [base + delta, base + 3 * delta])
        found, _ = merge_one(store, weight.plan(action="mean", out_dtype=name))
        assert torch.equal(found, (base + 2 * delta).to(torch_dtype(name)))

    def test_float64_arithmetic(self, store: Store, tmp_path: Path) -> None:
        base = random(1, 3, 3).double()
        weight = Weight(tmp_path, base, [base + 1e-9])
        exact, _ = merge_one(store, weight.plan(action="mean", out_dtype="F64"), arithmetic="float64")
        assert torch.equal(exact, base + ((base + 1e-9) - base))
        rounded, _ = merge_one(store, weight.plan(action="mean", out_dtype="F64"))
        assert not torch.equal(rounded, exact)

    @pytest.mark.parametrize("allow", [False, True])
    def test_values_that_do_not_fit_are_an_error(self, store: Store, tmp_path: Path, allow: bool) -> None:
        expert = torch.tensor([[1.0, 7e4], [-8e4, 6e4]])
        tensor = Weight(tmp_path, torch.zeros(2, 2), [expert]).plan(action="mean", out_dtype="F16")
        with pytest.raises(NonFiniteError, match=rf"'{NAME}' has 2 values that do not fit F16 \(largest 8e\+04\)"):
            merge_one(store, tensor, allow_nonfinite=allow)

    @pytest.mark.parametrize("name", ["F16", "BF16", "F32"])
    def test_the_largest_values_of_a_dtype_fit(self, store: Store, tmp_path: Path, name: str) -> None:
        """Although their sum, which is checked first, may overflow."""
        dtype = torch_dtype(name)
        expert = torch.full((8, 8), torch.finfo(dtype).max, dtype=dtype)
        found, _ = merge_one(store, Weight(tmp_path, None, [expert]).plan(action="mean", out_dtype=name))
        assert torch.equal(found, expert)


class TestNonFinite:
    """NaN in an expert."""

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Weight:
        base = random(1, 4, 4)
        return Weight(tmp_path, base, [base + 1, torch.full((4, 4), math.nan)])

    @pytest.mark.parametrize("keys", [{"method": "swudi", "spectrum_key": KEY}, {"method": "ties"}, {"action": "mean"}])
    def test_it_is_an_error_or_the_base_is_kept(self, store: Store, broken: Weight, keys: dict[str, Any]) -> None:
        with pytest.raises(NonFiniteError, match="16 NaN or Inf"):
            merge_one(store, broken.plan(**keys))
        assert broken.base is not None
        found, report = merge_one(store, broken.plan(**keys), allow_nonfinite=True)
        assert torch.equal(found, broken.base)
        assert (report.action, report.method, report.rank, report.spectrum) == ("copy", None, None, "none")
        (note,) = report.notes
        assert note.startswith("kept the base: ") and "expert1.safetensors" in note

    def test_without_a_base_it_is_an_error_in_any_case(self, store: Store, tmp_path: Path) -> None:
        weight = Weight(tmp_path, None, [torch.full((4, 4), math.nan)])
        with pytest.raises(NonFiniteError):
            merge_one(store, weight.plan(action="mean"), allow_nonfinite=True)

    def test_the_base_is_kept_in_the_rows_of_the_output(self, store: Store, tmp_path: Path) -> None:
        base = random(1, 2, 3)
        expert = ExpertTensor(0, write_tensor(tmp_path / "e.safetensors", torch.full((3, 3), math.nan)))
        source = write_tensor(tmp_path / "b.safetensors", base)
        tensor = plan((expert,), (3, 3), source, action="mean", base_rows=((0, 1, 1), (2, 0, 1)))
        found, _ = merge_one(store, tensor, allow_nonfinite=True)
        assert torch.equal(found, torch.stack([base[1], torch.zeros(3), base[0]]))


class TestAdapter:
    """Output as the factors of a PEFT adapter."""

    def entries(self, folder: Path, ranks: Sequence[int], scale: float = 1.0) -> list[ExpertTensor]:
        return [
            ExpertTensor(
                index,
                None,
                write_lora(
                    folder / f"{index}.safetensors", scale * random(index, 6, rank), random(9 + index, rank, 8), 2.0
                ),
            )
            for index, rank in enumerate(ranks)
        ]

    def deltas(self, ranks: Sequence[int]) -> list[torch.Tensor]:
        return [2.0 * random(index, 6, rank) @ random(9 + index, rank, 8) for index, rank in enumerate(ranks)]

    @pytest.mark.parametrize("transposed", [False, True])
    def test_factors_of_the_mean(self, store: Store, tmp_path: Path, transposed: bool) -> None:
        adapter = replace(FACTORS, transposed=transposed)
        tensor = plan(self.entries(tmp_path, (1, 2)), (6, 8), action="mean", adapter=adapter)
        (down, up), report = merge(store, tensor)
        expected = sum(self.deltas((1, 2))) / 2
        found = (up @ down).T if transposed else up @ down
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert down.shape == (3, 6 if transposed else 8) and report.truncation_error == 0.0

    def test_a_rank_that_is_too_small_leaves_an_error(self, store: Store, tmp_path: Path) -> None:
        tensor = plan(self.entries(tmp_path, (2, 2)), (6, 8), action="mean", adapter=FACTORS)
        (down, up), report = merge(store, tensor)
        mean = sum(self.deltas((2, 2))) / 2
        assert report.truncation_error == pytest.approx(float((up @ down - mean).norm() / mean.norm()), rel=1e-3)
        assert report.truncation_error > 0.01

    def test_a_spectral_method(self, store: Store, tmp_path: Path) -> None:
        adapter = replace(FACTORS, rank=4)
        tensor = plan(self.entries(tmp_path, (2, 2)), (6, 8), method="swudi", spectrum_key=KEY, adapter=adapter)
        (down, up), report = merge(store, tensor)
        torch.testing.assert_close(up @ down, merge_task_vectors(self.deltas((2, 2))), rtol=1e-3, atol=1e-3)
        assert report.spectrum == "computed" and report.rank is not None

    def test_nothing_to_merge_is_factors_of_zero(self, store: Store, tmp_path: Path) -> None:
        broken = write_lora(tmp_path / "x.safetensors", torch.full((6, 2), math.nan), random(1, 2, 8))
        tensor = plan((ExpertTensor(0, None, broken),), (6, 8), action="mean", adapter=FACTORS)
        with pytest.raises(NonFiniteError):
            merge(store, tensor)
        (down, up), report = merge(store, tensor, allow_nonfinite=True)
        assert not down.any() and not up.any() and report.action == "copy" and report.notes

    def test_a_whole_tensor_of_an_adapter(self, store: Store, tmp_path: Path) -> None:
        """modules_to_save: stored under another name, but not as factors."""
        weight = Weight.random(tmp_path, 4, 4, num_experts=2)
        assert weight.base is not None
        adapter = AdapterFactors(0, None, None, full="base_model.model.head.weight")
        found, report = merge_one(store, weight.plan(action="mean", adapter=adapter))
        torch.testing.assert_close(found, weight.base + (weight.deltas[0] + weight.deltas[1]) / 2)
        assert report.truncation_error is None
