"""Rank rules of SWUDI-A: eigenvalues and statistics per direction -> number of directions to keep.

They use no vectors, so the table of a run, which has none, is enough to evaluate them. Directions that are rounding
noise are not in a spectrum, and energies of unresolved directions count as 0 where a rule divides by the eigenvalue:
float32 gives the rank of float64.

Shapes: D1 = out features, D2 = in features, R = directions in the spectrum. The D2 - R eigenvalues that a spectrum does
not hold count as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import RecipeError
from .filters import EIGENVALUE_FLOOR, pad_with_zeros
from .lazy_torch import torch

_TINY = 1e-30
_D_AWARE_CUMVAR = 0.99
_DEFAULTS = {"loss_elbow": 0.01, "wudi_risk": 1.0}  # of rules that may be named without a number
_PREFIXES = ("cumvar", "loss_elbow", "loss_residual", "wudi_risk")


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The input of a rank rule for one layer; tensors are float64, on the CPU.

    values : (D2,), descending, floored at 1e-8
    target_energy : (D2,), ||D q_k||^2
    anchor_energy : (D2,), ||theta_0 q_k||^2
    shape : (D1, D2)
    slack : relative error of the values, which must not increase a count
    num_signal : eigenvalues above the rounding of storage, or where none is known above that of the arithmetic
    """

    values: torch.Tensor
    target_energy: torch.Tensor
    anchor_energy: torch.Tensor
    shape: tuple[int, int]
    slack: float
    num_signal: int


def select_rank(
    rule: str,
    values: torch.Tensor,
    statistics: Mapping[str, torch.Tensor],
    shape: tuple[int, int],
    *,
    anchor_factor: float = 1.0,
    rank_scale: float = 1.0,
    min_rank: int = 1,
    max_rank_ratio: float = 1.0,
) -> int:
    """Return the number of directions to keep: K of the rule times rank_scale, in [min_rank, round(max_rank_ratio D2)].

    Parameters
    ----------
    rule : str
        none, storage_noise, stable_rank, entropy, entropy_sq, participation, participation_sqrt,
        participation_sqrt_plus, participation_sqrt_c2, participation_sqrt_c2_half, gavish_donoho, cumvar_F,
        d_aware_participation_sqrt, d_aware_cumvar, d_aware_entropy, loss_elbow[_F], loss_residual_F, wudi_risk[_R].
    values : Tensor, (R,), descending
    statistics : mapping
        "target_energy" and "sum_energy" for rules that use them; "resolved" where some directions are not;
        "above_noise" where the rounding of storage is known: eigenvalues that are not above it count as 0.
    anchor_factor : float
        theta_0 as a multiple of the sum of the experts: 1, 1/N or 0.

    Raises
    ------
    RecipeError : unknown rule; suggests the nearest name

    References
    ----------
    SWUDI-A, arXiv:2606.07289, and its published code
    """
    compute = find_rule(rule)
    columns = shape[1]
    if columns == 0:
        return 0
    table = _layer_table(values, statistics, shape, anchor_factor)
    chosen = compute(table)
    if abs(rank_scale - 1.0) > 1e-8:
        chosen = round(chosen * rank_scale)
    limit = max(min_rank, round(max_rank_ratio * columns))
    return min(max(min_rank, min(chosen, limit)), columns)


def find_rule(rule: str) -> Callable[[LayerTable], int]:
    """Return the function of a rule; the number in its name is bound.

    Raises
    ------
    RecipeError : unknown name, or a number that is missing or out of range
    """
    if rule in _RULES:
        return _RULES[rule]
    prefix = next((p for p in _PREFIXES if rule == p or rule.startswith(p + "_")), None)
    if prefix is None:
        known = [*_RULES, "loss_elbow", "wudi_risk", "cumvar_0.95", "loss_residual_0.99"]
        near = get_close_matches(rule, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"
        raise RecipeError(f"unknown rank rule {rule!r}{hint}")
    suffix = rule.removeprefix(prefix).removeprefix("_")
    try:
        number = float(suffix) if suffix else _DEFAULTS[prefix]
    except (KeyError, ValueError):
        raise RecipeError(f"rank rule {rule!r} needs a number, for example {prefix}_0.95") from None
    if prefix == "wudi_risk":
        if not (number > 0 and math.isfinite(number)):
            raise RecipeError(
                f"rank rule {rule!r}: the number is the weight of the norm; expected above 0, found {number}"
            )
        return lambda table: _wudi_risk(table, number)
    if not 0.0 < number < 1.0:
        raise RecipeError(f"rank rule {rule!r}: the number is a fraction; expected between 0 and 1, found {number}")
    if prefix == "cumvar":
        return lambda table: _cumvar(table.values, number)
    fraction = number if prefix == "loss_elbow" else 1.0 - number
    return lambda table: _loss_elbow(table, fraction)


def _layer_table(
    values: torch.Tensor, statistics: Mapping[str, torch.Tensor], shape: tuple[int, int], anchor_factor: float
) -> LayerTable:
    columns = shape[1]
    zeros = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    resolved = statistics["resolved"] > 0 if "resolved" in statistics else values > 0
    above = statistics["above_noise"] > 0 if "above_noise" in statistics else torch.ones_like(resolved)
    target_energy = torch.where(resolved, statistics.get("target_energy", zeros).double(), zeros)
    anchor_energy = statistics.get("sum_energy", zeros).double() * anchor_factor**2
    return LayerTable(
        values=pad_with_zeros(torch.where(above, values.double(), 0.0), columns).clamp(min=EIGENVALUE_FLOOR).cpu(),
        target_energy=pad_with_zeros(target_energy, columns).cpu(),
        anchor_energy=pad_with_zeros(anchor_energy, columns).cpu(),
        shape=shape,
        slack=16 * torch.finfo(values.dtype).eps,
        num_signal=int((resolved & above).sum()),
    )


def _ceil(number: float, slack: float) -> int:
    # Four equal eigenvalues count as 4, also where rounding makes the quotient 4.0000002.
    return math.ceil(number * (1.0 - slack))


def _participation(masses: torch.Tensor) -> float:
    """Return (sum m)^2 / sum m^2."""
    return float(masses.sum() ** 2 / (masses**2).sum().clamp(min=_TINY))


def _exp_entropy(masses: torch.Tensor) -> float:
    """Return exp H(p), p = m / sum m."""
    shares = (masses / masses.sum().clamp(min=_TINY)).clamp(min=_TINY)
    return float((-(shares * shares.log()).sum()).exp())


def _cumvar(masses: torch.Tensor, fraction: float) -> int:
    """Return the smallest K whose first K masses have at least that fraction of the sum."""
    held = masses.cumsum(0) / masses.sum().clamp(min=_TINY)
    return int((held < fraction).sum()) + 1


def _stable_rank(table: LayerTable) -> int:
    return _ceil(float((table.values**2).sum() / table.values[0] ** 2), table.slack)


def _participation_sqrt_plus(table: LayerTable) -> int:
    correction = 1.0 + 1.0 / math.log(table.shape[1] + math.e)
    return _ceil(_participation(table.values.sqrt()) * correction, table.slack)


def _participation_sqrt_c2(table: LayerTable, share: float) -> int:
    """Return participation_sqrt times 1 + share c^2, c^2 = squared coefficient of variation of the kept roots."""
    roots = table.values.sqrt()
    plain = _ceil(_participation(roots), table.slack)
    kept = roots[:plain]
    variation = float(kept.var(unbiased=False) / kept.mean() ** 2) if plain >= 2 else 0.0
    return _ceil((1.0 + share * variation) * plain, table.slack)


def _gavish_donoho(table: LayerTable) -> int:
    """Return the number of singular values above the optimal hard threshold for unknown noise.

    mu, the median of the Marchenko-Pastur law, is approximated as in the published code.

    References
    ----------
    Gavish and Donoho, arXiv:1305.5870
    """
    beta = min(table.shape) / max(table.shape)
    numerator = 2.0 * (beta + 1.0) + 8.0 * beta / (beta + 1.0 + math.sqrt(beta**2 + 14.0 * beta + 1.0))
    mu = math.sqrt(max((1.0 - beta) ** 2 + beta, 1e-3)) if beta < 0.9999 else math.sqrt(2.0 + math.sqrt(3.0))
    roots = table.values.sqrt()
    return max(1, int((roots > math.sqrt(numerator) / mu * float(roots.median())).sum()))


def _solution_energy(table: LayerTable) -> torch.Tensor:
    """Return ||D q_k||^2 / lambda_k^2, the energy of the least-squares solution in each direction, (D2,)."""
    return table.target_energy / table.values**2


def _d_aware_participation_sqrt(table: LayerTable) -> int:
    return _ceil(_participation(_solution_energy(table).clamp(min=_TINY).sqrt()), table.slack)


def _loss(table: LayerTable) -> torch.Tensor:
    """Return L(K) for K = 0 .. D2, (D2 + 1,): the fit error that dropping the directions from K on adds."""
    dropped = table.values**2 * table.anchor_energy + table.target_energy
    # Summed from the smallest term, so that L(K) near D2 is no difference of large numbers.
    return torch.cat([dropped.flip(0).cumsum(0).flip(0), dropped.new_zeros(1)])


def _loss_elbow(table: LayerTable, fraction: float) -> int:
    loss = _loss(table)
    enough = loss / loss[0].clamp(min=_TINY) <= fraction * (1.0 + table.slack)
    return int(enough.nonzero()[0])


def _wudi_risk(table: LayerTable, weight: float) -> int:
    """Return the K that minimizes L(K) plus weight times the energy of the result."""
    zero = table.values.new_zeros(1)
    inside = torch.cat([zero, _solution_energy(table).cumsum(0)])
    outside = torch.cat([table.anchor_energy.flip(0).cumsum(0).flip(0), zero])
    return int(torch.argmin(_loss(table) + weight * (inside + outside)))


_RULES: dict[str, Callable[[LayerTable], int]] = {
    "none": lambda table: table.shape[1],
    "storage_noise": lambda table: table.num_signal,
    "stable_rank": _stable_rank,
    "entropy": lambda table: _ceil(_exp_entropy(table.values), table.slack),
    "entropy_sq": lambda table: _ceil(_exp_entropy(table.values**2), table.slack),
    "participation": lambda table: _ceil(_participation(table.values), table.slack),
    "participation_sqrt": lambda table: _ceil(_participation(table.values.sqrt()), table.slack),
    "participation_sqrt_plus": _participation_sqrt_plus,
    "participation_sqrt_c2": lambda table: _participation_sqrt_c2(table, 1.0),
    "participation_sqrt_c2_half": lambda table: _participation_sqrt_c2(table, 0.5),
    "gavish_donoho": _gavish_donoho,
    "d_aware_participation_sqrt": _d_aware_participation_sqrt,
    "d_aware_cumvar": lambda table: _cumvar(_solution_energy(table), _D_AWARE_CUMVAR),
    "d_aware_entropy": lambda table: _ceil(_exp_entropy(_solution_energy(table)), table.slack),
}
