"""Keep sums over experts in the store, so that merging the same set with one more expert reads only that expert.

For every matrix C, D and S are kept (or the factors, while all experts are LoRA), and for every tensor that takes the
mean delta its sum. The name of an object contains a hash of the set of experts; its header lists them in the order in
which they were added. The sums of one tensor share a folder, and a merge starts from the largest subset of its experts.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, cast

import torch

from ..cache.sealed_tensors import Seal, read_seal, read_sealed, write_sealed
from ..errors import CorruptObjectError, ObjectNotFoundError, ShapeError
from ..numerics.interference.operator import InterferenceOperator, accumulate
from ..numerics.interference.stored_form import StoredForm, reorder_experts, stack_factors, stored_form, unstack_factors
from ..numerics.interference.summed_task_vectors import SummedTaskVectors
from ..numerics.task_vectors import InMemoryTaskVectors, LowRank, TaskVectors, TransposedTaskVectors, noise_of
from ..storage.store import Store
from .expert_stream import ExpertStream

# Objects whose header is read in search of a subset. A folder holds more only where experts are often exchanged.
_MOST_CANDIDATES = 32

StoredT = TypeVar("StoredT")


@dataclass(frozen=True, slots=True)
class _LargestSubset(Generic[StoredT]):
    """The sums of the largest subset in the store.

    included : indices of the experts in `stored`, in the order in which they were added
    missing : indices of the others
    """

    stored: StoredT | None
    included: tuple[int, ...]
    missing: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """All experts in the order of addition."""
        return self.included + self.missing


class KeptSums:
    """The kept sums of one run.

    notes : damaged objects, whose experts were summed again
    bytes_read : bytes of sums read from the store
    """

    def __init__(self, store: Store, device: torch.device, dtype: torch.dtype) -> None:
        self._store = store
        self._device, self._dtype = device, dtype
        self.notes: list[str] = []
        self.bytes_read = 0

    def task_vectors(self, stream: TaskVectors, key: str, members: Sequence[str]) -> TaskVectors:
        """Return the experts of one matrix together with their sums, and keep the sums of all of them.

        Reads the base, and those experts that are not in the largest subset in the store.

        Parameters
        ----------
        stream : ExpertStream, or TransposedTaskVectors of one: the sums are then those of the transposed matrix
        key : `TensorPlan.sums_key`, or the view's
        members : `TensorPlan.members`, one for each expert of the stream
        """
        if _form(stream) == "factors":
            return self._factors(stream, key, members)
        return SummedTaskVectors(self._operator(stream, key, members), stream)

    def second_pass(self, stream: TaskVectors, key: str, members: Sequence[str]) -> TaskVectors:
        """Return the experts for a second pass: their kept factors, or else the experts themselves."""
        return self._factors(stream, key, members) if _form(stream) == "factors" else stream

    def weighted_sum(self, stream: ExpertStream, key: str, members: Sequence[str]) -> torch.Tensor:
        """Return sum_i weight_i (expert_i - base) of a tensor of any shape; parameters as `task_vectors`."""

        def parse(form: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
            if form != "sum" or set(tensors) != {"sum"} or tuple(tensors["sum"].shape) != stream.tensor.shape:
                raise CorruptObjectError(f"expected a sum of shape {list(stream.tensor.shape)}")
            return tensors["sum"]

        subset = self._largest_subset(key, members, parse)
        if not subset.missing and subset.stored is not None:
            return subset.stored
        total = weighted_sum_of(_restrict_stream(stream, subset.missing), subset.stored)
        self._keep(key, "sum", members, subset.all, {"sum": total})
        return total

    def _operator(self, stream: TaskVectors, key: str, members: Sequence[str]) -> InterferenceOperator:
        def parse(form: str, tensors: Mapping[str, torch.Tensor]) -> InterferenceOperator:
            if form == "factors":
                found = accumulate(InMemoryTaskVectors(unstack_factors(tensors)))
            else:
                found = InterferenceOperator.from_tensors(tensors)
            if found.shape != stream.shape:
                raise CorruptObjectError(f"its shape is {list(found.shape)}, expected {list(stream.shape)}")
            return found

        subset = self._largest_subset(key, members, parse)
        operator = subset.stored or InterferenceOperator.empty(stream.shape, self._dtype, self._device)
        added = _restrict(stream, subset.missing)
        for index, task_vector in enumerate(added):
            operator = operator.plus(task_vector, in_place=True, noise=noise_of(added, index))
        if subset.missing:
            self._keep(key, "operator", members, subset.all, operator.to_tensors())
        positions = sorted(range(len(members)), key=subset.all.__getitem__)
        return reorder_experts(operator, positions)

    def _factors(self, stream: TaskVectors, key: str, members: Sequence[str]) -> TaskVectors:
        def parse(form: str, tensors: Mapping[str, torch.Tensor]) -> list[LowRank]:
            found = unstack_factors(tensors)
            if any(expert.shape != stream.shape for expert in found):
                raise CorruptObjectError(f"its shape is not {list(stream.shape)}")
            return found

        subset = self._largest_subset(key, members, parse)
        experts = list(subset.stored or [])
        for task_vector in _restrict(stream, subset.missing):
            assert isinstance(task_vector, LowRank), "an adapter's task vector is a pair of factors"
            experts.append(task_vector)
        if subset.missing:
            self._keep(key, "factors", members, subset.all, stack_factors(experts))
        by_index = dict(zip(subset.all, experts, strict=True))
        return InMemoryTaskVectors([by_index[index] for index in range(len(members))])

    def _largest_subset(
        self, key: str, members: Sequence[str], parse: Callable[[str, Mapping[str, torch.Tensor]], StoredT]
    ) -> _LargestSubset[StoredT]:
        for candidate in self._candidates(key, len(members)):
            try:
                seal = read_seal(self._store, candidate)
                included = _positions(_members_of(seal), members)
                if included is None:
                    continue
                tensors = read_sealed(self._store, seal)
                self.bytes_read += seal.num_bytes
                stored = parse(str(seal.facts.get("form")), self._placed(tensors))
            except ObjectNotFoundError:  # deleted since it was listed
                continue
            except (CorruptObjectError, ShapeError) as error:
                where = self._store.display(candidate)
                message = str(error) if where in str(error) else f"{where}: {error}"
                self.notes.append(f"{message}; its experts are summed again")
                continue
            missing = set(range(len(members))) - set(included)
            return _LargestSubset(stored, included, tuple(sorted(missing)))
        return _LargestSubset(None, (), tuple(range(len(members))))

    def _candidates(self, key: str, num_members: int) -> Iterator[str]:
        """Yield the key of the set itself, then those of smaller sets, the largest first. Lists one folder."""
        folder = key.rpartition("/")[0]
        present = [info.key for info in self._store.list(folder, recursive=False)]
        if key in present:
            yield key
        smaller = [other for other in present if _num_members(other) < num_members]
        yield from sorted(smaller, reverse=True)[:_MOST_CANDIDATES]

    def _keep(
        self,
        key: str,
        form: StoredForm | str,
        members: Sequence[str],
        adding: Sequence[int],
        tensors: Mapping[str, torch.Tensor],
    ) -> None:
        write_sealed(self._store, key, tensors, {"form": form, "members": [members[index] for index in adding]})

    def _placed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Norms, ranks and noise keep their dtypes and stay on the CPU.
        small = ("norms", "ranks", "noise_rows", "noise_columns")
        return {
            name: tensor if name in small else tensor.to(self._device, self._dtype) for name, tensor in tensors.items()
        }


def weighted_sum_of(stream: ExpertStream, start: torch.Tensor | None = None) -> torch.Tensor:
    """Return start + sum_i weight_i (expert_i - base), for any shape; adds into `start`."""
    total = start
    deltas = stream.task_vectors()
    for expert in stream.tensor.experts:
        weight = expert.parameters.get("weight", 1.0)
        assert isinstance(weight, (int, float))
        delta = next(deltas)  # `zip` would keep this one in memory while the next is computed
        total = delta * weight if total is None else total.add_(delta, alpha=weight)
        del delta
    assert total is not None, "a sum needs an expert"
    return total


def _form(stream: TaskVectors) -> StoredForm:
    return stored_form(stream.shape, stream.max_ranks, stream.all_low_rank)


def _restrict(stream: TaskVectors, indices: Sequence[int]) -> TaskVectors:
    """Return the same task vectors of these experts alone."""
    if isinstance(stream, TransposedTaskVectors):
        return TransposedTaskVectors(_restrict(stream.original, indices))
    assert isinstance(stream, ExpertStream), type(stream)
    return _restrict_stream(stream, indices)


def _restrict_stream(stream: ExpertStream, indices: Sequence[int]) -> ExpertStream:
    """Return a stream of these experts alone, which shares the base in memory."""
    experts = tuple(stream.tensor.experts[index] for index in indices)
    if any(expert.full is not None for expert in experts):
        _ = stream.base  # read once, for both streams
    return replace(stream, tensor=replace(stream.tensor, experts=experts))


def _num_members(key: str) -> int:
    """Return the size of a set from the name of its object; a number larger than any set for other names."""
    digits = key.rpartition("/")[2].partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 10**9


def _members_of(seal: Seal) -> list[str]:
    members = seal.facts.get("members")
    listed = cast("list[object]", members) if isinstance(members, list) else None
    if listed is None or not all(isinstance(member, str) for member in listed):
        raise CorruptObjectError("its header does not list its experts")
    return cast("list[str]", listed)


def _positions(kept: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Return the index in `wanted` of each kept expert; None if one is not wanted. Experts may be equal."""
    if Counter(kept) - Counter(wanted):
        return None
    places: defaultdict[str, deque[int]] = defaultdict(deque)
    for index, member in enumerate(wanted):
        places[member].append(index)
    return tuple(places[member].popleft() for member in kept)
