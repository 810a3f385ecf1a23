"""KeptSums: sums over experts from a subset in the store; damaged and foreign objects; the order of the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from eigenmerge.core.cache.sealed_tensors import read_seal, write_sealed
from eigenmerge.core.merging.expert_stream import ExpertStream
from eigenmerge.core.merging.kept_sums import KeptSums, weighted_sum_of
from eigenmerge.core.numerics.interference.operator import InterferenceOperator, accumulate
from eigenmerge.core.numerics.interference.summed_task_vectors import SummedTaskVectors
from eigenmerge.core.numerics.task_vectors import LowRank, TaskVectors
from eigenmerge.core.planning.plan import ExpertTensor, TensorPlan
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.store import Store

from .examples import Weight, plan, random, write_lora, write_tensor

CPU = torch.device("cpu")
SHAPE = (5, 4)


def key_of(*experts: int) -> str:
    """A key as the planner makes them: the size of the set, then its hash."""
    return f"sums/w/{len(experts):06d}-{''.join(str(index) for index in sorted(experts))}.safetensors"


def members_of(*experts: int) -> list[str]:
    return [f"expert {index}" for index in experts]


def sums_of(store: Store, dtype: torch.dtype = torch.float32) -> KeptSums:
    return KeptSums(store, CPU, dtype)


def stream_of(tensor: TensorPlan, dtype: torch.dtype = torch.float32) -> ExpertStream:
    return ExpertStream(tensor, TensorReader(), dtype, CPU)


def operator_of(task_vectors: TaskVectors) -> InterferenceOperator:
    assert isinstance(task_vectors, SummedTaskVectors)
    return task_vectors.take_operator()


def assert_close(found: InterferenceOperator, expected: InterferenceOperator) -> None:
    """Sums in two orders of addition differ by rounding: a few units of float32 in values of about 1."""
    for name, tensor in expected.to_tensors().items():
        torch.testing.assert_close(found.to_tensors()[name], tensor, rtol=1e-5, atol=1e-6)


class Sums:
    """Kept sums of chosen experts of one dense weight, and what was read for them."""

    def __init__(self, weight: Weight, store: Store) -> None:
        self.weight, self.store = weight, store
        self.notes: list[str] = []
        self.bytes_read = 0
        self.kept_bytes_read = 0

    def operator(self, *experts: int) -> InterferenceOperator:
        stream, sums = stream_of(self.weight.plan(*experts)), sums_of(self.store)
        found = operator_of(sums.task_vectors(stream, key_of(*experts), members_of(*experts)))
        self.notes, self.bytes_read, self.kept_bytes_read = sums.notes, stream.reader.bytes_read, sums.bytes_read
        return found

    def expected(self, *experts: int) -> InterferenceOperator:
        return accumulate(stream_of(self.weight.plan(*experts)))

    @property
    def models_read(self) -> float:
        return self.bytes_read / self.weight.experts[0].nbytes


@pytest.fixture
def sums(tmp_path: Path) -> Sums:
    return Sums(Weight.random(tmp_path / "models", *SHAPE, num_experts=5), Store(str(tmp_path / "store")))


def test_sums_on_every_kind_of_store(place: Callable[[str], Store], tmp_path: Path) -> None:
    sums = Sums(Weight.random(tmp_path / "models", *SHAPE, num_experts=3), place("store"))
    assert_close(sums.operator(0, 1), sums.expected(0, 1))
    assert (sums.models_read, sums.kept_bytes_read) == (3, 0)
    first = sums.operator(0, 1, 2)
    assert_close(first, sums.expected(0, 1, 2))
    assert sums.models_read == 2, "the base and expert 2"
    assert sums.kept_bytes_read == sums.store.info(key_of(0, 1)).size
    again = sums.operator(0, 1, 2)
    assert sums.bytes_read == 0 and sums.notes == []
    assert all(torch.equal(tensor, first.to_tensors()[name]) for name, tensor in again.to_tensors().items())


def test_an_object_lists_its_experts_in_the_order_of_addition(sums: Sums) -> None:
    sums.operator(3, 1)
    sums.operator(0, 1, 2, 3)
    facts = read_seal(sums.store, key_of(0, 1, 2, 3)).facts
    assert facts == {"form": "operator", "members": ["expert 3", "expert 1", "expert 0", "expert 2"]}


def test_norms_are_in_the_order_of_the_stream(sums: Sums) -> None:
    sums.operator(2, 0)
    for order in ((0, 2), (2, 0), (1, 2, 0), (0, 1, 2)):
        assert_close(sums.operator(*order), sums.expected(*order))


def test_the_largest_subset_is_used(sums: Sums) -> None:
    sums.operator(0)
    sums.operator(0, 1, 2)
    sums.operator(3, 4)
    assert_close(sums.operator(0, 1, 2, 3), sums.expected(0, 1, 2, 3))
    assert sums.models_read == 2


def test_a_larger_set_or_one_with_another_expert_is_not_used(sums: Sums) -> None:
    sums.operator(0, 1, 2)
    assert_close(sums.operator(0, 1), sums.expected(0, 1))
    assert_close(sums.operator(0, 1, 3, 4), sums.expected(0, 1, 3, 4))
    assert sums.models_read == 3, "expert 3, expert 4 and the base, beside the sums of experts 0 and 1"


def test_an_expert_that_is_listed_twice_counts_twice(sums: Sums) -> None:
    sums.operator(0, 0)
    found = sums.operator(0, 1, 0, 0)
    assert_close(found, sums.expected(0, 1, 0, 0))
    assert sums.models_read == 3, "the base, expert 0 once more, and expert 1"
    assert_close(sums.operator(0, 1, 2), sums.expected(0, 1, 2))
    assert sums.models_read == 4, "sums that contain expert 0 twice are not used where it is listed once"


def damaged(content: bytes, damage: str) -> bytes:
    middle = len(content) * 3 // 4
    return {
        "truncated": content[:middle],
        "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"these are no tensors",
    }[damage]


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "text"])
def test_damaged_sums_are_noted_and_summed_again(sums: Sums, damage: str) -> None:
    key = key_of(0, 1)
    expected = sums.operator(0, 1)
    content = sums.store.read(key)
    sums.store.write(key, damaged(content, damage))
    found = sums.operator(0, 1)
    (note,) = sums.notes
    assert sums.store.display(key) in note and note.endswith("its experts are summed again")
    assert torch.equal(found.C, expected.C) and sums.models_read == 3
    assert sums.store.read(key) == content, "the object is replaced"


def test_a_smaller_set_replaces_a_damaged_one(sums: Sums) -> None:
    sums.operator(0, 1)
    sums.operator(0, 1, 2)
    sums.store.write(key_of(0, 1, 2), b"")
    assert_close(sums.operator(0, 1, 2, 3), sums.expected(0, 1, 2, 3))
    assert len(sums.notes) == 1 and sums.models_read == 3


def test_sums_of_another_shape_are_noted(sums: Sums) -> None:
    other = InterferenceOperator.empty((3, 3), torch.float32, CPU).plus(random(1, 3, 3))
    facts = {"form": "operator", "members": members_of(0)}
    write_sealed(sums.store, key_of(0), other.to_tensors(), facts)
    assert_close(sums.operator(0), sums.expected(0))
    assert "its shape is [3, 3], expected [5, 4]" in sums.notes[0]


@pytest.mark.parametrize("members", [None, "expert 0", ["expert 0", 1]])
def test_sums_without_a_list_of_experts_are_noted(sums: Sums, members: object) -> None:
    write_sealed(sums.store, key_of(0), {"C": torch.zeros(1)}, {"form": "operator", "members": members})
    assert_close(sums.operator(0), sums.expected(0))
    assert "its header does not list its experts" in sums.notes[0]


def test_an_operator_without_one_of_its_tensors_is_noted(sums: Sums) -> None:
    tensors = sums.expected(0).to_tensors()
    del tensors["D"]
    write_sealed(sums.store, key_of(0), tensors, {"form": "operator", "members": members_of(0)})
    assert_close(sums.operator(0), sums.expected(0))
    assert "lacks D" in sums.notes[0]


def test_other_files_in_the_folder_are_ignored(sums: Sums) -> None:
    for name in ("readme.txt", ".DS_Store", "999999999-x.safetensors"):
        sums.store.write(f"sums/w/{name}", b"foreign")
    assert_close(sums.operator(0, 1), sums.expected(0, 1))
    assert sums.notes == []


def test_the_dtype_of_the_arithmetic_is_kept(tmp_path: Path) -> None:
    weight = Weight.random(tmp_path / "models", *SHAPE, num_experts=2)
    store = Store(str(tmp_path / "store"))
    for _ in range(2):  # computed, then read
        stream = stream_of(weight.plan(0), torch.float64)
        found = operator_of(sums_of(store, torch.float64).task_vectors(stream, key_of(0), members_of(0)))
        assert {tensor.dtype for tensor in found.to_tensors().values()} == {torch.float64}


class TestFactors:
    """LoRA experts whose factors are smaller than their sums: the factors themselves are kept."""

    SHAPE = (12, 16)

    def plan(self, folder: Path, experts: Sequence[int]) -> TensorPlan:
        entries = [self.adapter(folder, index) for index in experts]
        return plan(entries, self.SHAPE, write_tensor(folder / "base.safetensors", random(0, *self.SHAPE)))

    def adapter(self, folder: Path, index: int) -> ExpertTensor:
        rows, columns = self.SHAPE
        path = folder / f"adapter{index}.safetensors"
        return ExpertTensor(index, None, write_lora(path, random(index, rows, 2), random(50 + index, 2, columns)))

    def test_they_equal_those_of_the_adapters_exactly_in_any_order(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path / "store"))
        for experts in ((1, 0), (0, 1, 2), (2, 1, 0)):
            tensor = self.plan(tmp_path, experts)
            stream = stream_of(tensor)
            found = sums_of(store).task_vectors(stream, key_of(*experts), members_of(*experts))
            assert found.all_low_rank and list(found.max_ranks) == [2] * len(experts)
            for one, other in zip(found, stream_of(tensor), strict=True):
                assert isinstance(one, LowRank) and isinstance(other, LowRank)
                assert torch.equal(one.left, other.left) and torch.equal(one.right, other.right)
        assert stream.reader.bytes_read == 0, "all three are in the store"
        assert read_seal(store, key_of(0, 1, 2)).facts["form"] == "factors"

    def test_a_second_pass_reads_the_kept_factors(self, tmp_path: Path) -> None:
        store, tensor = Store(str(tmp_path / "store")), self.plan(tmp_path, (0, 1))
        sums_of(store).task_vectors(stream_of(tensor), key_of(0, 1), members_of(0, 1))
        stream = stream_of(tensor)
        found = list(sums_of(store).second_pass(stream, key_of(0, 1), members_of(0, 1)))
        assert len(found) == 2 and stream.reader.bytes_read == 0

    def test_a_dense_expert_turns_them_into_sums(self, tmp_path: Path) -> None:
        store, adapters = Store(str(tmp_path / "store")), self.plan(tmp_path, (0, 1))
        sums_of(store).task_vectors(stream_of(adapters), key_of(0, 1), members_of(0, 1))
        full = ExpertTensor(2, write_tensor(tmp_path / "full.safetensors", random(9, *self.SHAPE)))
        tensor = plan([*adapters.experts, full], self.SHAPE, adapters.base)
        stream = stream_of(tensor)
        found = sums_of(store).task_vectors(stream, key_of(0, 1, 2), members_of(0, 1, 2))
        assert stream.reader.bytes_read == 2 * 12 * 16 * 4, "the base and the dense expert"
        expected = accumulate(stream_of(tensor))
        operator = operator_of(found)
        for name, one in expected.to_tensors().items():
            torch.testing.assert_close(operator.to_tensors()[name], one, rtol=1e-4, atol=1e-4)

    def test_factors_that_do_not_fit_are_noted(self, tmp_path: Path) -> None:
        store, tensor = Store(str(tmp_path / "store")), self.plan(tmp_path, (0,))
        facts = {"form": "factors", "members": members_of(0)}
        for left, right in ((random(1, 12, 2), random(2, 2, 15)), (random(1, 12, 2), random(2, 3, 16))):
            tensors = {"left": left, "right": right, "ranks": torch.tensor([2])}
            write_sealed(store, key_of(0), tensors, facts)
            sums = sums_of(store)
            (found,) = sums.task_vectors(stream_of(tensor), key_of(0), members_of(0))
            assert tuple(found.shape) == self.SHAPE and len(sums.notes) == 1


def test_a_second_pass_over_dense_experts_is_the_stream_itself(sums: Sums) -> None:
    stream = stream_of(sums.weight.plan())
    assert sums_of(sums.store).second_pass(stream, key_of(0), members_of(0)) is stream


class TestWeightedSum:
    """The sum of the deltas of a tensor of any shape."""

    def test_it_starts_from_a_subset(self, tmp_path: Path) -> None:
        weight, store = Weight.random(tmp_path / "models", 7, num_experts=3), Store(str(tmp_path / "store"))
        weights = (0.5, 2.0, 1.0)
        for experts, read in (((0, 1), 3), ((0, 1, 2), 2), ((0, 1, 2), 0)):
            stream, sums = stream_of(weight.plan(*experts, weights=weights)), sums_of(store)
            found = sums.weighted_sum(stream, key_of(*experts), members_of(*experts))
            expected = sum(weights[index] * weight.deltas[index] for index in experts)
            torch.testing.assert_close(found, expected)
            assert stream.reader.bytes_read == read * weight.experts[0].nbytes

    def test_sums_of_another_form_or_shape_are_noted(self, tmp_path: Path) -> None:
        weight, store = Weight.random(tmp_path / "models", 7, num_experts=1), Store(str(tmp_path / "store"))
        for form, tensors in (
            ("operator", {"sum": torch.zeros(7)}),
            ("sum", {"sum": torch.zeros(6)}),
            ("sum", {"total": torch.zeros(7)}),
        ):
            write_sealed(store, key_of(0), tensors, {"form": form, "members": members_of(0)})
            sums = sums_of(store)
            found = sums.weighted_sum(stream_of(weight.plan()), key_of(0), members_of(0))
            torch.testing.assert_close(found, weight.deltas[0])
            assert len(sums.notes) == 1 and "expected a sum of shape [7]" in sums.notes[0]

    def test_an_expert_without_a_weight_has_weight_one(self, tmp_path: Path) -> None:
        weight = Weight.random(tmp_path, 2, 3, 2, num_experts=2)
        start = torch.ones(2, 3, 2)
        found = weighted_sum_of(stream_of(weight.plan()), start)
        torch.testing.assert_close(found, 1.0 + weight.deltas[0] + weight.deltas[1])
        assert found is start, "added in place"
