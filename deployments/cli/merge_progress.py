"""What a merge has done and what is left: shards, bytes, rate, time by cost, and the tensor that is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ...core.cache.reports import ShardReport
from ...core.planning.cost.machines import MACHINES
from ...core.planning.cost.simulate import schedule_order
from ...core.planning.plan import Plan, TensorPlan
from .options import show_bytes, show_seconds


class MergeProgress:
    """Counts the events of one run. Thread-safe.

    The time left is the time so far, times the cost of what is left over the cost of what this run computed. The cost
    of a tensor is its projected operations and bytes on a typical machine: an embedding with many bytes and few
    operations counts less than a matrix that is decomposed. Shards that were found in the store count as neither.

    Parameters
    ----------
    clock : monotonic, seconds
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._costs = {t.name: tensor_cost(t, plan.settings.device) for shard in plan.shards for t in shard.tensors}
        self._total_cost = sum(self._costs.values())
        self._done_cost = 0.0
        self._tensors_done: set[str] = set()
        self._order = [plan.shards[position] for position in schedule_order(plan.shards)]
        self._open = {shard.index: shard.bytes_read for shard in plan.shards}  # planned bytes of unfinished shards
        self._finished_bytes = 0  # of finished shards that this run computed
        self._partial_bytes: dict[str, int] = {}  # read for tensors of unfinished shards

    def tensor_done(self, name: str, bytes_read: int) -> None:
        """Count a tensor of a shard that is not finished."""
        with self._lock:
            self._partial_bytes[name] = bytes_read
            self._finish_tensor(name)

    def shard_done(self, report: ShardReport) -> None:
        """Count a shard: its tensors where no event told of them, as in other processes."""
        with self._lock:
            self._open.pop(report.index, None)
            for tensor in report.tensors:
                self._partial_bytes.pop(tensor.name, None)
                if report.reused and tensor.name not in self._tensors_done:
                    self._total_cost -= self._costs.get(tensor.name, 0.0)
                    self._tensors_done.add(tensor.name)
                else:
                    self._finish_tensor(tensor.name)
            if not report.reused:
                self._finished_bytes += report.bytes_read

    def _finish_tensor(self, name: str) -> None:
        if name not in self._tensors_done:
            self._tensors_done.add(name)
            self._done_cost += self._costs.get(name, 0.0)

    @property
    def num_shards(self) -> int:
        return len(self._plan.shards)

    @property
    def shards_done(self) -> int:
        return self.num_shards - len(self._open)

    @property
    def share(self) -> float:
        """Of the cost, 0 to 1."""
        return min(1.0, self._done_cost / self._total_cost) if self._total_cost > 0 else 1.0

    @property
    def bytes_read(self) -> int:
        return self._finished_bytes + sum(self._partial_bytes.values())

    @property
    def bytes_total(self) -> int:
        """Read by finished shards, and planned for the others."""
        return max(self._finished_bytes + sum(self._open.values()), self.bytes_read)

    @property
    def seconds_left(self) -> float | None:
        """None where nothing has been computed yet."""
        if not self._open:
            return 0.0
        if self._done_cost <= 0:
            return None
        left = max(0.0, self._total_cost - self._done_cost)
        return (self._clock() - self._started) * left / self._done_cost

    @property
    def waiting_for(self) -> str | None:
        """The first unfinished tensor of the most expensive unfinished shard, which was started first."""
        for shard in self._order:
            if shard.index in self._open:
                return next((t.name for t in shard.tensors if t.name not in self._tensors_done), shard.name)
        return None

    def facts(self) -> list[str]:
        """Return "3/10 shards", "1.2/50 GB", "0.4 GB/s" and "2 min 05 s left"."""
        with self._lock:
            elapsed = self._clock() - self._started
            rate = f"{show_bytes(self.bytes_read / elapsed)}/s" if elapsed > 0 else ""
            left = self.seconds_left
            return [
                f"{self.shards_done}/{self.num_shards} shards",
                f"{show_bytes(self.bytes_read)} of {show_bytes(self.bytes_total)}",
                rate,
                f"{show_seconds(left)} left" if left is not None else "time left unknown",
            ]

    def line(self) -> str:
        """Return all of it as one line."""
        waiting = self.waiting_for
        return ", ".join(filter(None, self.facts())) + (f"; waiting for {waiting}" if waiting else "")


def tensor_cost(tensor: TensorPlan, device: str) -> float:
    """Return the projected seconds of one tensor on a typical machine; only ratios are used."""
    machine = MACHINES["h100-80gb" if device.startswith("cuda") else "cpu-2core"]
    return tensor.flops / machine.eigh_flops + tensor.bytes_read / machine.read_bandwidth
