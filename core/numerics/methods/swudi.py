"""SWUDI and SWUDI-soft: WUDI in closed form under an exponential filter on the top directions, or on all."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from ..apply_filter import Factors
from ..interference.decompose import decompose_interference
from ..interference.output_filter import filter_outputs
from ..interference.wudi_family import (
    FilterParameters,
    InterferenceMethod,
    amplifies_rounding,
    evaluate_filter,
    factors_of_filter,
    rank_by_ratio,
)
from ..lazy_torch import torch
from ..spectrum import Spectrum
from ..task_vectors import TaskVectors


class SwudiSoftParameters(FilterParameters):
    alignment_rho: float = Field(
        0.0,
        ge=0,
        le=2,
        description="cross-layer alignment: t becomes t (geometric mean of lambda_max over layers / this layer's)^rho;"
        " 0 is off; no effect on a single tensor",
    )


class SwudiParameters(SwudiSoftParameters):
    rank_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="number of directions to keep, as a fraction r of the D2 input dimensions: ceil(r D2);"
        " null keeps all",
    )
    consensus_power: float = Field(
        0.0,
        ge=0,
        description="weight each direction by (share of experts that use it)^power; 0 is off",
    )
    consensus_floor: float = Field(0.0, ge=0, le=1, description="lower bound of the consensus weight")
    output_exp_time: float | None = Field(
        None, ge=0, description="time of an exponential filter over the outputs; null is off"
    )


class SwudiSoft(InterferenceMethod[SwudiSoftParameters]):
    """theta_0 + sum_k f_k/lambda_k (D - theta_0 C) q_k q_k^T with f_k = 1 - exp(-exp_time lambda_k).

    All directions are used. C = sum_i w_i v_i^T v_i = Q diag(lambda) Q^T, D = sum_i w_i v_i v_i^T v_i,
    w_i = 1/||v_i||_F^2; theta_0 is the anchor.

    References
    ----------
    SWUDI, arXiv:2606.07289; the objective is that of WUDI, arXiv:2503.08099
    """

    name = "swudi_soft"
    aliases = ("iwudi",)
    summary = "WUDI in closed form under an exponential filter, no direction cut off"
    source = "arXiv:2606.07289"
    Parameters = SwudiSoftParameters

    def needs_float64(self, parameters: SwudiSoftParameters) -> bool:
        return amplifies_rounding(parameters)

    def factors(self, spectrum: Spectrum, parameters: SwudiSoftParameters) -> Factors:
        rank = spectrum.shape[1]
        return factors_of_filter(
            spectrum, evaluate_filter(spectrum, parameters, rank), rank, parameters.anchor, parameters.scale
        )


class Swudi(InterferenceMethod[SwudiParameters]):
    """As SwudiSoft, but f_k = 0 beyond the first ceil(rank_ratio D2) directions.

    Two options: `consensus_power` multiplies f_k by a + (1 - a) c_k^power, with a = `consensus_floor` and c_k the
    effective share of experts that use direction k. `output_exp_time` filters over the outputs as well (see
    output_filter.py).

    References
    ----------
    SWUDI, arXiv:2606.07289; the objective is that of WUDI, arXiv:2503.08099
    """

    name = "swudi"
    summary = "WUDI in closed form under an exponential filter on the top fraction of directions"
    source = "arXiv:2606.07289"
    Parameters = SwudiParameters

    def needs_float64(self, parameters: SwudiParameters) -> bool:
        return amplifies_rounding(parameters)

    def decomposition(self, parameters: SwudiParameters) -> Mapping[str, object]:
        identity: dict[str, object] = {"kind": "interference"}
        if parameters.consensus_power > 0:
            identity["with_expert_energy"] = True
        if parameters.output_exp_time is not None:
            identity["output_exp_time"] = parameters.output_exp_time
        return identity

    def decompose(self, task_vectors: TaskVectors, parameters: SwudiParameters) -> Spectrum:
        spectrum = decompose_interference(task_vectors, with_expert_energy=parameters.consensus_power > 0)
        if parameters.output_exp_time is not None:
            spectrum = filter_outputs(spectrum, task_vectors, parameters.output_exp_time)
        return spectrum

    def factors(self, spectrum: Spectrum, parameters: SwudiParameters) -> Factors:
        rank = rank_by_ratio(parameters.rank_ratio, spectrum.shape[1])
        chosen = evaluate_filter(spectrum, parameters, rank)
        if parameters.consensus_power > 0 and spectrum.num_experts > 1:
            agreement = _measure_agreement(spectrum.statistics["expert_energy"])
            floor = parameters.consensus_floor
            chosen = chosen.times(floor + (1.0 - floor) * agreement**parameters.consensus_power)
        return factors_of_filter(spectrum, chosen, rank, parameters.anchor, parameters.scale)


def _measure_agreement(expert_energy: torch.Tensor) -> torch.Tensor:
    """Return the effective share of experts in each direction: 1 if all use it equally, 1/N if only one does."""
    shares = expert_energy / expert_energy.sum(dim=1, keepdim=True).clamp(min=1e-30)
    effective = 1.0 / (shares**2).sum(dim=1).clamp(min=1e-12)
    return (effective / expert_energy.shape[1]).clamp(max=1.0)
