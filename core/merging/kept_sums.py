"""Sums over experts that are kept, so that merging a set of experts again with one more reads that one alone.

Of every matrix C, D and S (or, while all experts are LoRA, their factors), of every tensor that takes the mean delta
its sum. An object is named by the set of experts and lists its members in the order in which they were added; sets lie
side by side in one folder, and a merge starts from the largest one that is part of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from ..cache.sealed_tensors import Seal, read_seal, read_sealed, write_sealed
from ..errors import CorruptObjectError, ObjectNotFoundError, ShapeError
from ..numerics.interference.kept_sums import KeptForm, in_order, kept_form, stack_factors, unstack_factors
from ..numerics.interference.operator import InterferenceOperator, accumulate
from ..numerics.interference.summed_task_vectors import SummedTaskVectors
from ..numerics.task_vectors import InMemoryTaskVectors, LowRank, TaskVectors
from ..storage.store import Store
from .expert_stream import ExpertStream

# Sets whose record is read in search of a subset. More lie there only where experts come and go a lot.
_MOST_CANDIDATES = 32

Start = TypeVar("Start")


@dataclass(frozen=True, slots=True)
class _Begun(Generic[Start]):
    """What is kept of the largest subset, and which experts are in it (`order`) and not (`rest`); by index."""

    start: Start | None
    order: tuple[int, ...]
    rest: tuple[int, ...]

    @property
    def adding(self) -> tuple[int, ...]:
        return self.order + self.rest


class KeptSums:
    """The sums of one run. `notes` says what was found damaged; `bytes_read` counts what the store gave."""

    def __init__(self, store: Store, device: torch.device, dtype: torch.dtype) -> None:
        self._store = store
        self._device, self._dtype = device, dtype
        self.notes: list[str] = []
        self.bytes_read = 0

    def task_vectors(self, stream: ExpertStream, key: str, members: Sequence[str]) -> TaskVectors:
        """The experts of one matrix with what is known of their sums; afterwards the sums of all of them are kept.

        Reads the base, and of the experts those that are not in the largest set that is kept.

        Parameters
        ----------
        key : `TensorPlan.sums_key`, or the view's
        members : `TensorPlan.members`, one for each expert of the stream
        """
        if _form(stream) == "factors":
            return self._factors(stream, key, members)
        return SummedTaskVectors(self._operator(stream, key, members), stream)

    def second_pass(self, stream: ExpertStream, key: str, members: Sequence[str]) -> TaskVectors:
        """For what passes over the experts once more: their kept factors, or else the experts themselves."""
        return self._factors(stream, key, members) if _form(stream) == "factors" else stream

    def weighted_sum(self, stream: ExpertStream, key: str, members: Sequence[str]) -> torch.Tensor:
        """sum_i weight_i (expert_i - base) of a tensor of any shape; parameters as `task_vectors`."""

        def parse(form: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
            if form != "sum" or tensors.keys() != {"sum"} or tuple(tensors["sum"].shape) != stream.tensor.shape:
                raise CorruptObjectError(f"it holds no sum of shape {list(stream.tensor.shape)}")
            return tensors["sum"]

        begun = self._begin(key, members, parse)
        if not begun.rest and begun.start is not None:
            return begun.start
        total = weighted_sum_of(_only(stream, begun.rest), begun.start)
        self._keep(key, "sum", members, begun.adding, {"sum": total})
        return total

    def _operator(self, stream: ExpertStream, key: str, members: Sequence[str]) -> InterferenceOperator:
        def parse(form: str, tensors: Mapping[str, torch.Tensor]) -> InterferenceOperator:
            if form == "factors":
                found = accumulate(InMemoryTaskVectors(unstack_factors(tensors)))
            else:
                found = InterferenceOperator.from_tensors(tensors)
            if found.shape != stream.shape:
                raise CorruptObjectError(f"it is of shape {list(found.shape)}, expected {list(stream.shape)}")
            return found

        begun = self._begin(key, members, parse)
        operator = begun.start or InterferenceOperator.empty(stream.shape, self._dtype, self._device)
        for task_vector in _only(stream, begun.rest):
            operator = operator.plus(task_vector, in_place=True)
        if begun.rest:
            self._keep(key, "operator", members, begun.adding, operator.to_tensors())
        positions = sorted(range(len(members)), key=begun.adding.__getitem__)
        return in_order(operator, positions)

    def _factors(self, stream: ExpertStream, key: str, members: Sequence[str]) -> TaskVectors:
        def parse(form: str, tensors: Mapping[str, torch.Tensor]) -> list[LowRank]:
            found = unstack_factors(tensors)
            if any(expert.shape != stream.shape for expert in found):
                raise CorruptObjectError(f"it is not of shape {list(stream.shape)}")
            return found

        begun = self._begin(key, members, parse)
        experts = list(begun.start or [])
        for task_vector in _only(stream, begun.rest):
            assert isinstance(task_vector, LowRank), "an adapter's task vector comes as factors"
            experts.append(task_vector)
        if begun.rest:
            self._keep(key, "factors", members, begun.adding, stack_factors(experts))
        by_index = dict(zip(begun.adding, experts, strict=True))
        return InMemoryTaskVectors([by_index[index] for index in range(len(members))])

    def _begin(
        self, key: str, members: Sequence[str], parse: Callable[[str, Mapping[str, torch.Tensor]], Start]
    ) -> _Begun[Start]:
        for candidate in self._candidates(key, len(members)):
            try:
                seal = read_seal(self._store, candidate)
                order = _positions(_members_of(seal), members)
                if order is None:
                    continue
                tensors = read_sealed(self._store, seal)
                self.bytes_read += seal.num_bytes
                start = parse(str(seal.facts.get("form")), self._placed(tensors))
            except ObjectNotFoundError:  # removed this moment
                continue
            except (CorruptObjectError, ShapeError) as error:
                where = self._store.display(candidate)
                message = str(error) if where in str(error) else f"{where}: {error}"
                self.notes.append(f"{message}; its experts are summed up again")
                continue
            known = set(order)
            return _Begun(start, order, tuple(index for index in range(len(members)) if index not in known))
        return _Begun(None, (), tuple(range(len(members))))

    def _candidates(self, key: str, num_members: int) -> Iterator[str]:
        """The set itself, then smaller ones, the largest first; one list of their folder."""
        folder = key.rpartition("/")[0]
        present = [info.key for info in self._store.list(folder, recursive=False)]
        if key in present:
            yield key
        smaller = [other for other in present if _num_members(other) < num_members]
        yield from sorted(smaller, reverse=True)[:_MOST_CANDIDATES]

    def _keep(
        self,
        key: str,
        form: KeptForm | str,
        members: Sequence[str],
        adding: Sequence[int],
        tensors: Mapping[str, torch.Tensor],
    ) -> None:
        write_sealed(self._store, key, tensors, {"form": form, "members": [members[index] for index in adding]})

    def _placed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # norms and ranks stay what they are, on the CPU
        small = ("norms", "ranks")
        return {
            name: tensor if name in small else tensor.to(self._device, self._dtype) for name, tensor in tensors.items()
        }


def weighted_sum_of(stream: ExpertStream, start: torch.Tensor | None = None) -> torch.Tensor:
    """start + sum_i weight_i (expert_i - base), for any shape; adds into `start`."""
    total = start
    deltas = stream.task_vectors()
    for expert in stream.tensor.experts:
        weight = expert.parameters.get("weight", 1.0)
        assert isinstance(weight, (int, float))
        delta = next(deltas)  # `zip` would hold this one while the next is made
        total = delta * weight if total is None else total.add_(delta, alpha=weight)
        del delta
    assert total is not None, "a sum needs an expert"
    return total


def _form(stream: ExpertStream) -> KeptForm:
    return kept_form(stream.shape, stream.max_ranks, stream.all_low_rank)


def _only(stream: ExpertStream, indices: Sequence[int]) -> ExpertStream:
    """The stream of these experts alone, with the same base in memory."""
    experts = tuple(stream.tensor.experts[index] for index in indices)
    if any(expert.full is not None for expert in experts):
        _ = stream.base  # read once, for both streams
    return replace(stream, tensor=replace(stream.tensor, experts=experts))


def _num_members(key: str) -> int:
    """From the name; more than any set has where the name is not ours."""
    digits = key.rpartition("/")[2].partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 10**9


def _members_of(seal: Seal) -> list[str]:
    members = seal.facts.get("members")
    if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        raise CorruptObjectError("it does not list its experts")
    return members


def _positions(kept: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """The index in `wanted` of each kept expert; None where one is not wanted. Experts may be equal to each other."""
    if Counter(kept) - Counter(wanted):
        return None
    places: defaultdict[str, deque[int]] = defaultdict(deque)
    for index, member in enumerate(wanted):
        places[member].append(index)
    return tuple(places[member].popleft() for member in kept)
