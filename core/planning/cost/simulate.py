"""Simulate a plan on W workers: list scheduling of its shards, largest first, on a machine model.

The result is the time, the price, and the limiting factor: the workers' arithmetic, the store's bandwidth, the largest
shard (more workers do not help), or assembling the output.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Literal

from ...numerics.interference.decompose import choose_route
from ...numerics.interference.stored_form import stored_form
from ...numerics.method import SpectralMethod
from ...numerics.registry import get_method
from ..plan import LayerShard, Plan, TensorPlan, decompositions, matrix_shape_of
from .crossing import bytes_to_device, bytes_to_host
from .machines import EIGH_FLOPS_PER_CUBE, SVD_FLOPS_PER_CUBE, MachineModel
from .projection import max_rank

Limit = Literal[
    "compute", "read bandwidth", "write bandwidth", "GPU copies", "largest shard", "shard overhead", "assembling"
]

# Elementwise methods need far fewer operations per element and expert (a sort about 20); more are matrix products.
_ELEMENTWISE_OPERATIONS = 64.0


@dataclass(frozen=True, slots=True)
class WorkSplit:
    """The operations of one tensor by kind; their sum is the plan's `flops`.

    eigh_rows : sum of the orders of the eigendecompositions
    """

    eigh_rows: int = 0
    eigh: float = 0.0
    svd: float = 0.0
    matmul: float = 0.0
    elementwise: float = 0.0


@dataclass(frozen=True, slots=True)
class ShardCost:
    """Seconds of one shard on one worker.

    Experts are read while previous ones are copied to the GPU and accumulated (products, elementwise work). A
    decomposition needs all experts, and writing needs the decomposition.

    copies : between host memory and GPU, in both directions
    seconds : total time, which the schedule uses
    """

    index: int
    accumulate: float
    decompose: float
    read: float
    write: float
    copies: float
    overhead: float
    seconds: float

    @property
    def compute(self) -> float:
        """Seconds of arithmetic."""
        return self.accumulate + self.decompose


@dataclass(frozen=True, slots=True)
class Simulation:
    """Result of one simulated schedule.

    seconds : from the start of the first shard to the end of assembling
    efficiency : busy worker-seconds / (num_workers * seconds), 0 to 1
    limit : the largest of the lower bounds on `seconds`
    bounds : lower bounds on `seconds`, by limit
    cost : in the currency of the machine's price
    critical_shard : the shard that ends last
    too_large : (name, projected bytes) of shards that exceed the machine's memory
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
        """Return the fields as JSON data."""
        return asdict(self)


def split_work(tensor: TensorPlan) -> WorkSplit:
    """Divide the plan's operations of one tensor among eigendecomposition, SVD, products and elementwise work."""
    if tensor.action != "merge" or tensor.method is None:
        return WorkSplit(elementwise=tensor.flops)
    if tensor.spectrum_key is None and not tensor.views:
        limit = _ELEMENTWISE_OPERATIONS * prod(tensor.shape) * (len(tensor.experts) + 1)
        elementwise = min(tensor.flops, limit)
        return WorkSplit(elementwise=elementwise, matmul=tensor.flops - elementwise)
    eigh_sides: list[int] = []
    svd_sides: list[int] = []
    uses_operator = _uses_operator(tensor)
    for view in tensor.views or (None,):
        shape = matrix_shape_of(tensor.matrix_shape or tensor.shape, view, tensor.in_out)
        ranks = [max_rank(expert, shape, view) for expert in tensor.experts]
        for one in decompositions(tensor, view):
            side = (shape[1], shape[0]) if one.over_outputs else shape
            kept = tensor.members and stored_form(side, ranks, all(expert.full is None for expert in tensor.experts))
            if uses_operator and (kept == "operator" or choose_route(side, ranks) == "gram"):
                eigh_sides.append(side[1])
            else:
                svd_sides.append(min(side[1], sum(ranks)) if uses_operator else min(*side, sum(ranks)))
    eigh = min(tensor.flops, EIGH_FLOPS_PER_CUBE * sum(side**3 for side in eigh_sides))
    svd = min(tensor.flops - eigh, SVD_FLOPS_PER_CUBE * sum(side**3 for side in svd_sides))
    return WorkSplit(eigh_rows=sum(eigh_sides), eigh=eigh, svd=svd, matmul=tensor.flops - eigh - svd)


def _uses_operator(tensor: TensorPlan) -> bool:
    """Return whether the method decomposes C = sum_i w_i v_i^T v_i (the WUDI family); other methods compute SVDs."""
    assert tensor.method is not None
    method = get_method(tensor.method)
    if not isinstance(method, SpectralMethod):  # SVC after a direct method
        return False
    kind = method.decomposition(method.Parameters(**tensor.parameters))["kind"]
    return str(kind).startswith("interference")


def shard_cost(shard: LayerShard, machine: MachineModel, num_workers: int = 1) -> ShardCost:
    """Return the seconds of one shard while `num_workers` workers share the store's bandwidth."""
    accumulate = decompose = to_device = to_host = 0.0
    for tensor in shard.tensors:
        work = split_work(tensor)
        accumulate += work.matmul / machine.matmul_flops + work.elementwise / machine.elementwise_flops
        decompose += work.eigh / machine.eigh_flops + work.eigh_rows * machine.eigh_seconds_per_row
        decompose += work.svd / machine.svd_flops
        if machine.device_bandwidth is not None:
            to_device += bytes_to_device(tensor) / machine.device_bandwidth
            to_host += bytes_to_host(tensor) / machine.device_bandwidth
    share = machine.store_bandwidth / num_workers if machine.store_bandwidth else float("inf")
    read = shard.bytes_read / min(machine.read_bandwidth, share)
    write = _bytes_written(shard) / min(machine.write_bandwidth, share)
    overhead = machine.shard_overhead_seconds
    used = to_device + accumulate
    streamed = max(used, read) if machine.overlapped else used + read
    seconds = overhead + streamed + decompose + to_host + write
    return ShardCost(shard.index, accumulate, decompose, read, write, to_device + to_host, overhead, seconds)


def _bytes_written(shard: LayerShard) -> int:
    return shard.bytes_written + sum(tensor.spectrum_bytes for tensor in shard.tensors)


def schedule_order(shards: Sequence[LayerShard], machine: MachineModel | None = None) -> list[int]:
    """Return positions in `shards` in the order to start them: the largest first.

    The total time of largest-first list scheduling is at most 4/3 - 1/(3 W) times the optimum (Graham 1969). Without a
    machine, shards are ordered by operations, then by bytes read. Ties keep the order of the plan.
    """
    if machine is not None:
        costs = [shard_cost(shard, machine).seconds for shard in shards]
        return sorted(range(len(shards)), key=lambda i: (-costs[i], i))
    return sorted(range(len(shards)), key=lambda i: (-shards[i].flops, -shards[i].bytes_read, i))


def simulate(plan: Plan, machine: MachineModel, num_workers: int, order: Iterable[int] | None = None) -> Simulation:
    """Simulate the schedule: each shard, in order, is assigned to the worker that is free first.

    Cost: O(S log S) for S shards.

    Parameters
    ----------
    order : iterable of int, optional
        Positions of the shards; default `schedule_order(plan.shards, machine)`.
    """
    assert num_workers >= 1, f"{num_workers} workers"
    num_active = max(1, min(num_workers, len(plan.shards)))
    costs = [shard_cost(shard, machine, num_active) for shard in plan.shards]
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
    """Return lower bounds, in seconds, on the time of any schedule with this number of workers."""
    return {
        "compute": sum(cost.compute for cost in costs) / num_workers,
        "read bandwidth": sum(cost.read for cost in costs) / num_workers,
        "write bandwidth": sum(cost.write for cost in costs) / num_workers,
        "GPU copies": sum(cost.copies for cost in costs) / num_workers,
        "shard overhead": sum(cost.overhead for cost in costs) / num_workers,
        "largest shard": max((cost.seconds for cost in costs), default=0.0),
        "assembling": assemble,
    }
