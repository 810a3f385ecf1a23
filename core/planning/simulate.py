"""What a plan costs on W workers: list scheduling of its shards, largest first, on a machine model. Pure.

The question is asked before anything runs: how long, how much money, and what to change if it is too long. So the
answer names its limit: the workers' arithmetic, the store's bandwidth, the largest shard (more workers do not help), or
the reduce at the end.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Literal

from ..numerics.method import SpectralMethod
from ..numerics.registry import get_method
from .machines import EIGH_FLOPS_PER_CUBE, SVD_FLOPS_PER_CUBE, MachineModel
from .plan import ExpertTensor, LayerShard, Plan, TensorPlan

Limit = Literal["compute", "read bandwidth", "write bandwidth", "largest shard", "shard overhead", "assembling"]

# Element by element methods stay far below this many operations for each element of each expert (a sort is about 20);
# what goes beyond is matrix products.
_ELEMENTWISE_OPERATIONS = 64.0


@dataclass(frozen=True, slots=True)
class WorkSplit:
    """The operations of one tensor by what carries them out; their sum is the plan's `flops`."""

    eigh_side: int = 0  # n of the eigendecomposition, 0 if there is none
    eigh: float = 0.0
    svd: float = 0.0
    matmul: float = 0.0
    elementwise: float = 0.0


@dataclass(frozen=True, slots=True)
class ShardCost:
    """Seconds of one shard on one worker; `seconds` is what the schedule uses."""

    index: int
    compute: float
    read: float
    write: float
    overhead: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """One schedule.

    seconds : from the first shard's start to the commit, assembling included
    efficiency : busy worker-seconds / (num_workers * seconds), 0 to 1
    limit : the largest of the lower bounds on `seconds`
    bounds : every lower bound in seconds, by the name of the limit
    critical_shard : the shard that ends last, with its own seconds
    too_large : names of shards whose projected memory exceeds the machine's, with projected bytes
    """

    machine: str
    num_workers: int
    num_shards: int
    seconds: float
    assemble_seconds: float
    busy_seconds: float
    efficiency: float
    bytes_read: int
    bytes_written: int
    cost: float
    limit: Limit
    bounds: dict[str, float]
    critical_shard: str
    critical_shard_seconds: float
    largest_shard: str
    largest_shard_seconds: float
    too_large: tuple[tuple[str, int], ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def _expert_rank(expert: ExpertTensor, full_rank: int) -> int:
    """An upper bound on the rank of one expert's task vector."""
    if expert.full is not None:
        return full_rank
    return 0 if expert.lora is None else min(full_rank, expert.lora.down.shape[0], expert.lora.down.shape[-1])


def _gram_side(tensor: TensorPlan) -> int:
    """Side of the matrix to decompose: in features, or the stacked rows of all experts where those are fewer."""
    rows, columns = tensor.shape
    stacked_rank = sum(_expert_rank(expert, min(rows, columns)) for expert in tensor.experts)
    return min(columns, stacked_rank)


def split_work(tensor: TensorPlan) -> WorkSplit:
    """Divide the plan's operations of one tensor among eigendecomposition, SVD, products and elementwise work."""
    if tensor.action != "merge" or tensor.method is None:
        return WorkSplit(elementwise=tensor.flops)
    if tensor.spectrum_key is None or len(tensor.shape) != 2:
        limit = _ELEMENTWISE_OPERATIONS * prod(tensor.shape) * (len(tensor.experts) + 1)
        elementwise = min(tensor.flops, limit)
        return WorkSplit(elementwise=elementwise, matmul=tensor.flops - elementwise)
    side = _gram_side(tensor)
    if _uses_svd(tensor):
        svd = min(tensor.flops, SVD_FLOPS_PER_CUBE * min(side, *tensor.shape) ** 3)
        return WorkSplit(svd=svd, matmul=tensor.flops - svd)
    eigh = min(tensor.flops, EIGH_FLOPS_PER_CUBE * side**3)
    return WorkSplit(eigh_side=side, eigh=eigh, matmul=tensor.flops - eigh)


def _uses_svd(tensor: TensorPlan) -> bool:
    assert tensor.method is not None
    method = get_method(tensor.method)
    assert isinstance(method, SpectralMethod), f"{tensor.method} has a spectrum key and is not spectral"
    return "svd" in str(method.decomposition(method.Parameters(**tensor.parameters))["kind"])


def shard_cost(shard: LayerShard, machine: MachineModel, num_workers: int = 1) -> ShardCost:
    """Seconds of one shard when `num_workers` share the store."""
    compute = 0.0
    for tensor in shard.tensors:
        work = split_work(tensor)
        compute += work.matmul / machine.matmul_flops + work.elementwise / machine.elementwise_flops
        compute += work.svd / machine.svd_flops
        compute += work.eigh / machine.eigh_flops + work.eigh_side * machine.eigh_seconds_per_row
    share = machine.store_bandwidth / num_workers if machine.store_bandwidth else float("inf")
    read = shard.bytes_read / min(machine.read_bandwidth, share)
    write = _bytes_written(shard) / min(machine.write_bandwidth, share)
    overhead = machine.shard_overhead_seconds
    seconds = overhead + (max(compute, read, write) if machine.overlapped else compute + read + write)
    return ShardCost(shard.index, compute, read, write, overhead, seconds)


def _bytes_written(shard: LayerShard) -> int:
    return shard.bytes_written + sum(tensor.spectrum_bytes for tensor in shard.tensors)


def schedule_order(shards: Sequence[LayerShard], machine: MachineModel | None = None) -> list[int]:
    """Positions in `shards` in the order to start them: largest first, so that no long one is left for the end.

    Largest-first list scheduling ends at most 4/3 - 1/(3 W) times the best possible end (Graham 1969). Without a
    machine the operations decide, then the bytes: good enough where the work is decompositions. Ties keep plan order.
    """
    if machine is not None:
        costs = [shard_cost(shard, machine).seconds for shard in shards]
        return sorted(range(len(shards)), key=lambda i: (-costs[i], i))
    return sorted(range(len(shards)), key=lambda i: (-shards[i].flops, -shards[i].bytes_read, i))


def simulate(plan: Plan, machine: MachineModel, num_workers: int, order: Iterable[int] | None = None) -> Simulation:
    """Run the schedule: each shard, in order, goes to the worker that is free first.

    Cost: O(S log S) for S shards.

    Parameters
    ----------
    order : iterable of int, optional
        Positions of the shards; default `schedule_order(plan.shards, machine)`.
    """
    assert num_workers >= 1, f"{num_workers} workers"
    costs = [shard_cost(shard, machine, num_workers) for shard in plan.shards]
    positions = list(schedule_order(plan.shards, machine) if order is None else order)
    free_at = [(0.0, worker) for worker in range(num_workers)]
    end, critical = 0.0, -1
    for position in positions:
        start, worker = heapq.heappop(free_at)
        stop = start + costs[position].seconds
        heapq.heappush(free_at, (stop, worker))
        if stop > end:
            end, critical = stop, position
    assemble = plan.bytes_written / machine.copy_bandwidth if machine.copy_bandwidth else 0.0
    seconds = end + assemble
    busy = sum(costs[position].seconds for position in positions)
    largest = max(positions, key=lambda i: costs[i].seconds, default=-1)
    bounds = _lower_bounds(costs, num_workers, assemble)
    return Simulation(
        machine=machine.name,
        num_workers=num_workers,
        num_shards=len(positions),
        seconds=seconds,
        assemble_seconds=assemble,
        busy_seconds=busy,
        efficiency=busy / (num_workers * seconds) if seconds else 1.0,
        bytes_read=plan.bytes_read,
        bytes_written=plan.bytes_written + plan.spectrum_bytes,
        cost=num_workers * seconds / 3600 * machine.price_per_hour,
        limit=max(bounds, key=lambda name: bounds[name]),
        bounds={str(name): bound for name, bound in bounds.items()},
        critical_shard=plan.shards[critical].name if critical >= 0 else "",
        critical_shard_seconds=costs[critical].seconds if critical >= 0 else 0.0,
        largest_shard=plan.shards[largest].name if largest >= 0 else "",
        largest_shard_seconds=costs[largest].seconds if largest >= 0 else 0.0,
        too_large=tuple((s.name, s.peak_bytes) for s in plan.shards if s.peak_bytes > machine.memory_bytes),
    )


def _lower_bounds(costs: Sequence[ShardCost], num_workers: int, assemble: float) -> dict[Limit, float]:
    """No schedule on that many workers ends before any of these."""
    return {
        "compute": sum(cost.compute for cost in costs) / num_workers,
        "read bandwidth": sum(cost.read for cost in costs) / num_workers,
        "write bandwidth": sum(cost.write for cost in costs) / num_workers,
        "shard overhead": sum(cost.overhead for cost in costs) / num_workers,
        "largest shard": max((cost.seconds for cost in costs), default=0.0),
        "assembling": assemble,
    }
