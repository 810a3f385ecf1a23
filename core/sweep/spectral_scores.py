"""Scores of a candidate from the spectra alone, without data: interference, norm, generalized cross-validation.

All follow from the numbers lambda_k, ||D q_k||^2, ||S q_k||^2 and <D q_k, S q_k> of each direction and from the filter
of the candidate, so a candidate costs no product of matrices. With theta the merged delta of one matrix and f its
filter:

    interference   E(theta) / E(0),  E(theta) = sum_k ||lambda_k theta q_k - D q_k||^2 / lambda_k:
                   WUDI's objective above its minimum, relative to no merge; 0 to 1 for a filter of gain f / lambda
    norm           ||theta||_F / (root mean square of ||v_i||_F)
    gcv            R E(theta) / (R - sum_k f_k)^2 / E(0), R = resolved directions; the data outside of the range of C,
                   which no filter fits, are not counted
    distance       ||theta - theta_0||_F / (root mean square of ||v_i||_F), for the L-curve (l_curve.py)

A score of the model is the mean over its matrices.

References
----------
WUDI, arXiv:2503.08099, eq. 7; Golub, Heath, Wahba 1979, doi:10.1080/00401706.1979.10489751 (generalized
cross-validation); Hansen 1992, doi:10.1137/1034115 (L-curve).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from ..cache.alignments import AlignedExpTimes
from ..cache.spectra.reader import read_spectrum
from ..errors import RecipeError
from ..merging.spectral_merger import planned_method
from ..numerics.apply_filter import Factors
from ..numerics.interference.wudi_family import AnchorParameters, anchor_factor
from ..numerics.spectrum import Spectrum
from ..planning.plan import Plan, decompositions
from ..storage.store import Store
from .spectra_steps import spectral_tensors

#: Metrics in the order of the table, each with whether a lower value is better.
DATA_FREE_METRICS: Mapping[str, bool] = {"gcv": True, "interference": True, "norm": True, "l_curve": False}

# Kinds of spectra with D q_k and S q_k; those of iterated methods hold the iterate instead.
_KINDS = ("interference", "optmerge")

# With fewer free directions than this share, generalized cross-validation divides rounding by rounding.
_LEAST_FREE_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class MatrixScores:
    """The scores of one matrix. gcv is None where the filter passes every direction whole, so that nothing is left to
    measure its error with.
    """

    interference: float
    norm: float
    gcv: float | None
    distance: float


class SpectralScorer:
    """Scores plans from the spectra of a store, whose values and statistics are read once.

    Parameters
    ----------
    cross_energies : <D q_k, S q_k> by spectrum key, from `measure_spectra`
    """

    def __init__(self, store: Store, cross_energies: Mapping[str, Sequence[float]]) -> None:
        self._store = store
        self._cross = {key: torch.tensor(values, dtype=torch.float64) for key, values in cross_energies.items()}
        self._heads: dict[str, Spectrum] = {}
        self._times = AlignedExpTimes(store)

    def score(self, plan: Plan) -> dict[str, float | None]:
        """Return interference, norm, gcv and distance of a plan: means over its matrices whose experts are not all 0.

        Raises
        ------
        RecipeError : a matrix is merged by a method without an interference operator
        """
        scores: list[MatrixScores] = []
        for tensor in spectral_tensors(plan):
            method, parameters = planned_method(tensor)
            for view in tensor.views or (None,):
                (planned,) = decompositions(tensor, view)  # `check_scorable` refuses two
                key, own = planned.spectrum_key, parameters
                head, cross = self._head(key), self._cross.get(key)
                if cross is None:
                    raise RecipeError(no_data_free_scores(method.name))
                if planned.alignment_key is not None:
                    time = self._times.exp_time(planned.alignment_key, key, own.exp_time, own.alignment_rho)
                    own = own.model_copy(update={"exp_time": time})
                anchor = anchor_factor(own.anchor, head.num_experts)
                found = score_matrix(head, method.factors(head, own), cross, anchor)
                scores += [found] if found is not None else []
        if not scores:
            return dict.fromkeys(("interference", "norm", "gcv", "distance"))
        gcv = [one.gcv for one in scores if one.gcv is not None]
        return {
            "interference": _mean([one.interference for one in scores]),
            "norm": _mean([one.norm for one in scores]),
            "gcv": _mean(gcv) if len(gcv) == len(scores) else None,
            "distance": _mean([one.distance for one in scores]),
        }

    def _head(self, key: str) -> Spectrum:
        if key not in self._heads:
            self._heads[key] = read_spectrum(self._store, key, values_only=True).spectrum
        return self._heads[key]


def check_scorable(plan: Plan) -> None:
    """Check that every matrix of a plan can be scored without data, before any is decomposed.

    Raises
    ------
    RecipeError : a matrix is merged by a method without an interference operator, or none is merged
    """
    tensors = spectral_tensors(plan)
    if not tensors:
        raise RecipeError("no tensor is merged by a spectral method, so candidates have no scores without data")
    for tensor in tensors:
        method, parameters = planned_method(tensor)
        is_operator = method.decomposition(parameters).get("kind") in _KINDS
        if not is_operator or not isinstance(parameters, AnchorParameters):
            raise RecipeError(no_data_free_scores(method.name))
        if any(len(decompositions(tensor, view)) > 1 for view in tensor.views or (None,)):
            raise RecipeError(
                f"{tensor.name}: is merged over both sides, whose mean has no score without data; give an evaluator, or"
                " choose one side"
            )


def no_data_free_scores(method: str) -> str:
    """Return the message about a method whose candidates cannot be scored without data."""
    return (
        f"{method}: has no interference operator, from which candidates are scored without data; give an evaluator,"
        " such as --evaluate module:function"
    )


def score_matrix(spectrum: Spectrum, factors: Factors, cross: torch.Tensor, anchor: float) -> MatrixScores | None:
    """Return the scores of one matrix; None where all experts are 0, so that every candidate is.

    Parameters
    ----------
    spectrum : values and statistics; its vectors are not used
    cross : Tensor, (R,), float64, <D q_k, S q_k>
    anchor : theta_0 as a multiple of the sum of the experts
    """
    values = spectrum.values.double()
    zero = torch.zeros_like(values)
    gain = factors.weights.get("target", zero).double()
    kept = factors.weights.get("sum", zero).double()
    target, total = spectrum.statistics["target_energy"].double(), spectrum.statistics["sum_energy"].double()
    resolved = (spectrum.statistics["resolved"] > 0) & (values > 0)
    norms = cast("list[float]", spectrum.info["expert_norms"])
    expert_norm = math.sqrt(sum(norm**2 for norm in norms) / max(1, len(norms)))
    if expert_norm == 0.0 or not bool(resolved.any()):
        return None
    energy = _energy(gain, kept, target, total, cross)
    residual = values**2 * energy - 2.0 * values * (gain * target + kept * cross) + target
    divisor = torch.where(resolved, values, 1.0)
    excess = float((residual.clamp_min(0.0) / divisor)[resolved].sum())
    at_zero = float((target / divisor)[resolved].sum())
    count = int(resolved.sum())
    free = count - float((values * gain)[resolved].sum())
    from_anchor = _energy(gain, kept - anchor, target, total, cross)
    return MatrixScores(
        interference=excess / at_zero,
        norm=math.sqrt(max(0.0, float(energy.sum()))) / expert_norm,
        gcv=count * excess / free**2 / at_zero if free > _LEAST_FREE_SHARE * count else None,
        distance=math.sqrt(max(0.0, float(from_anchor.sum()))) / expert_norm,
    )


def _energy(
    gain: torch.Tensor, kept: torch.Tensor, target: torch.Tensor, total: torch.Tensor, cross: torch.Tensor
) -> torch.Tensor:
    """Return ||gain D q_k + kept S q_k||^2 of each direction."""
    return gain**2 * target + kept**2 * total + 2.0 * gain * kept * cross


def _mean(values: Sequence[float]) -> float | None:
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None
