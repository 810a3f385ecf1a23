"""The two steps on shards that come before the candidates of a sweep: decompose, and measure the spectra."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..cache.reports import DecomposeReport
from ..cache.spectra.reader import read_spectrum
from ..coordination.stop import StopSignal
from ..coordination.threads import use_one_thread
from ..numerics.method import SpectralMethod
from ..numerics.registry import get_planned_method
from ..planning.plan import LayerShard, Plan, TensorPlan, spectrum_keys
from ..run import ShardJob
from ..steps.decompose_shard import decompose_tensors
from ..steps.shard_steps import OnTensor


@dataclass(frozen=True, slots=True)
class SpectraReport:
    """What the scores of candidates need of the vectors of spectra.

    cross_energies : <D q_k, S q_k> of each direction by spectrum key, as float64 numbers; the key is missing where a
        spectrum has no blocks "target" and "sum"
    """

    index: int
    cross_energies: dict[str, list[float]]


def decompose_spectra(
    job: ShardJob, *, stop: StopSignal | None = None, on_tensor: OnTensor | None = None, wait: bool = True
) -> DecomposeReport:
    """Write the spectra of a shard's tensors to the store, where it lacks them. Idempotent. Errors as `merge_shard`."""
    return decompose_tensors(job, job.shard.tensors, stop=stop, on_tensor=on_tensor, wait=wait)


def measure_spectra(
    job: ShardJob, *, stop: StopSignal | None = None, on_tensor: OnTensor | None = None, wait: bool = True
) -> SpectraReport:
    """Read the vectors of a shard's spectra once, and return what is no statistic of theirs. Idempotent.

    Cost: one read of the spectra.

    Raises
    ------
    StoreError : a spectrum was deleted after it was computed
    """
    stop = stop or StopSignal()
    use_one_thread()
    found: dict[str, list[float]] = {}
    for tensor in job.shard.tensors:
        for key in spectrum_keys(tensor):
            stop.check()
            left = read_spectrum(job.store, key).spectrum.left
            if {"target", "sum"} <= left.keys():
                found[key] = _row_products(left["target"], left["sum"]).tolist()
        if on_tensor is not None:
            on_tensor(tensor.name, 0)
    return SpectraReport(job.shard.index, found)


def spectral_tensors(plan: Plan) -> list[TensorPlan]:
    """Return the tensors whose merge is a decomposition and a filter."""
    return [tensor for shard in plan.shards for tensor in shard.tensors if _is_spectral(tensor)]


def shards_to_decompose(plans: Iterable[Plan], known: set[str]) -> list[LayerShard]:
    """Return the shards of all plans with only those tensors whose spectra are not in `known`, and add them to it."""
    chosen: list[LayerShard] = []
    for plan in plans:
        for shard in plan.shards:
            new: list[TensorPlan] = []
            for tensor in shard.tensors:
                keys = spectrum_keys(tensor)
                if _is_spectral(tensor) and not known.issuperset(keys):
                    known.update(keys)
                    new.append(tensor)
            if new:
                chosen.append(replace(shard, tensors=tuple(new), index=len(chosen)))
    return chosen


def _is_spectral(tensor: TensorPlan) -> bool:
    if tensor.action != "merge" or tensor.method is None or not spectrum_keys(tensor):
        return False
    return isinstance(get_planned_method(tensor.method, tensor.method_package), SpectralMethod)


def _row_products(first: torch.Tensor, second: torch.Tensor, block: int = 256) -> torch.Tensor:
    """Return the inner product of each pair of rows, (R,) float64."""
    products: Sequence[torch.Tensor] = [
        (a.double() * b.double()).sum(dim=1) for a, b in zip(first.split(block), second.split(block), strict=True)
    ]
    return torch.cat([*products, torch.zeros(0, dtype=torch.float64)])
