"""The interference spectrum from the eigendecomposition of C, (K, K): the gram route.

Shapes: M = out features (D1), K = in features (D2), R = directions kept, N = experts.
"""

from __future__ import annotations

import math
from typing import cast

from ..energies import row_energies
from ..lazy_torch import torch
from ..linear_algebra import eigh
from ..noise.combined import describe_noise
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import product
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors
from .operator import InterferenceOperator
from .rounding import arithmetic_epsilon, eigenvalue_cut

# Unresolved directions are dropped if their part of D and of S is at most this many epsilons, as much as a cast loses.
_DROPPED_ROUNDINGS = 16.0


def spectrum_of_operator(
    operator: InterferenceOperator, *, kind: str = "interference", one_expert_is_solution: bool = True
) -> Spectrum:
    """Return the spectrum of C: eigenvalues in descending order, with D q_k and S q_k.

    Directions whose eigenvalue is below the cut of `eigenvalue_cut`, or that of the rounding of storage, are not
    resolved. They are left out where D q_k and S q_k are rounding noise too, and kept with the statistic `resolved` = 0
    otherwise: filters that divide by the
    eigenvalue must not pass them.

    Cost: about 10 K^3 + 4 M K^2 flops; 4 K^2 + 2 M K elements, and the operator, of which C, S and D are freed in this
    order as soon as they are used, if the caller does not hold it.

    Parameters
    ----------
    operator : InterferenceOperator
    kind : str
        Kind of the spectrum.
    one_expert_is_solution : bool
        True if D = v C when a single expert is not 0, as in WUDI; False for OptMerge, which truncates.

    Returns
    -------
    Spectrum with blocks "target" and "sum", statistics "target_energy", "sum_energy" and "resolved" (float64)

    References
    ----------
    SWUDI, arXiv:2606.07289; the cut: docs/decisions/010-null-cut.md
    """
    rows, columns = operator.shape
    if operator.num_nonzero == 0:
        return empty_spectrum(kind, operator.shape, operator.norms, operator.S)
    C, D, S, norms, noise = operator.C, operator.D, operator.S, operator.norms, operator.noise
    one_expert, num_experts = operator.num_nonzero == 1, operator.num_experts
    del operator
    epsilon = arithmetic_epsilon(C.dtype)
    ascending, vectors = eigh(C)
    del C
    largest, smallest = float(ascending[-1]), float(ascending[0])
    cut = eigenvalue_cut(largest, smallest, columns, epsilon)
    level = 0.0 if noise is None else noise.floor(ascending.clamp(min=0.0).sqrt()) ** 2
    values = ascending.flip(0)
    # values below one rounding of the largest, or below the noise that a negative eigenvalue measures, count as 0
    values[values <= max(epsilon * largest, -smallest)] = 0.0
    right = vectors.T.flip(0)
    del vectors
    total = product(right, S.T)
    del S
    # With one expert D = v C = S C. Computed from S, the result is that expert up to rounding, whatever its spectrum.
    is_solution = one_expert_is_solution and one_expert
    target = total * values.unsqueeze(1) if is_solution else product(right, D.T)
    del D

    target_energy, sum_energy = row_energies(target), row_energies(total)
    resolved = values > max(cut, level)
    keep = _directions_to_keep(resolved, target_energy, sum_energy, epsilon)
    if not bool(keep.all()):
        values, right, target, total = values[keep], right[keep], target[keep], total[keep]
        target_energy, sum_energy, resolved = target_energy[keep], sum_energy[keep], resolved[keep]
    return Spectrum(
        kind=kind,
        shape=(rows, columns),
        num_experts=num_experts,
        values=values,
        right=right,
        left={"target": target, "sum": total},
        statistics={
            "target_energy": target_energy,
            "sum_energy": sum_energy,
            "resolved": resolved.double(),
            **({"above_noise": (values > level).double()} if level > 0 else {}),
        },
        info={
            "route": "gram",
            "expert_norms": [float(norm) for norm in norms],
            "value_cut": max(cut, level),
            "num_resolved": int(resolved.sum()),
            **_noise_facts(noise, level, largest),
        },
    )


def expert_energies(spectrum: Spectrum, task_vectors: TaskVectors) -> torch.Tensor:
    """Return w_i ||v_i q_k||^2, (R, N) float64: the part of expert i in eigenvalue k.

    Cost: a second pass over the experts; 2 N R M K flops.
    """
    norms = cast("list[float]", spectrum.info["expert_norms"])
    shares = torch.zeros((spectrum.num_directions, task_vectors.num_experts), dtype=torch.float64)
    for index, task_vector in enumerate(task_vectors):
        if isinstance(task_vector, LowRank):
            projected = product(product(spectrum.right, task_vector.right.T), task_vector.left.T)
        else:
            projected = product(spectrum.right, task_vector.T)
        if norms[index] > 0:
            shares[:, index] = (row_energies(projected) / norms[index] ** 2).cpu()
    return shares.to(spectrum.values.device)


def empty_spectrum(kind: str, shape: tuple[int, int], norms: torch.Tensor, like: torch.Tensor) -> Spectrum:
    """Return the spectrum of experts that are all 0: no directions, so the delta is 0."""
    rows, columns = shape
    none = torch.zeros(0, dtype=torch.float64, device=like.device)
    return Spectrum(
        kind=kind,
        shape=shape,
        num_experts=len(norms),
        values=like.new_zeros(0),
        right=like.new_zeros((0, columns)),
        left={"target": like.new_zeros((0, rows)), "sum": like.new_zeros((0, rows))},
        statistics={"target_energy": none, "sum_energy": none, "resolved": none},
        info={"route": "none", "expert_norms": [float(norm) for norm in norms], "value_cut": 0.0, "num_resolved": 0},
    )


def _noise_facts(noise: StorageNoise | None, floor: float, largest: float) -> dict[str, object]:
    if noise is None:
        return {}
    level = noise.level
    return describe_noise(noise, floor, level**2, level / math.sqrt(largest))


def _directions_to_keep(
    resolved: torch.Tensor, target_energy: torch.Tensor, sum_energy: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return a mask (R,), false for the unresolved directions whose sum is rounding noise of D and of S."""
    tiny = torch.finfo(torch.float64).tiny
    share = torch.maximum(
        target_energy / target_energy.sum().clamp(min=tiny), sum_energy / sum_energy.sum().clamp(min=tiny)
    )
    candidates = (~resolved).nonzero().squeeze(1)
    smallest_first = candidates[torch.argsort(share[candidates])]
    together = share[smallest_first].cumsum(0)
    keep = torch.ones_like(resolved)
    keep[smallest_first[together <= (_DROPPED_ROUNDINGS * epsilon) ** 2]] = False
    return keep
