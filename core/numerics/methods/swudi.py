"""SWUDI and SWUDI-soft: WUDI solved in closed form under an exponential filter on the top directions, or on all."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from ..interference.decompose import decompose_interference
from ..interference.family import FilterParameters, InterferenceMethod, factors_on_top, filtered, keep_by_ratio
from ..interference.output_filter import filter_outputs
from ..lazy_torch import torch
from ..spectrum import Factors, Spectrum
from ..task_vectors import TaskVectors


class SwudiSoftParameters(FilterParameters):
    alignment_rho: float = Field(
        0.0,
        ge=0,
        le=2,
        description="cross-layer alignment: t becomes t (geometric mean of lambda_max over layers / this layer's)^rho;"
        " 0 is off; needs the other layers, so it does nothing to a single tensor",
    )


class SwudiParameters(SwudiSoftParameters):
    rank_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="fraction of the input dimensions to keep: K = ceil(r D2), at least 1; null keeps all",
    )
    consensus_power: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weigh each direction by (share of experts that use it)^power; 0 is off",
    )
    consensus_floor: float = Field(0.0, ge=0, le=1, description="least weight that the consensus can give")
    output_exp_time: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="time of an exponential filter on the output side; null is off"
    )


class SwudiSoft(InterferenceMethod[SwudiSoftParameters]):
    name = "swudi_soft"
    aliases = ("iwudi",)
    summary = "WUDI in closed form under an exponential filter, no direction cut off"
    source = "arXiv:2606.07289"
    Parameters = SwudiSoftParameters

    def factors(self, spectrum: Spectrum, parameters: SwudiSoftParameters) -> Factors:
        rank = spectrum.shape[1]
        return factors_on_top(spectrum, filtered(spectrum, parameters, rank), rank, parameters.anchor, parameters.scale)


class Swudi(InterferenceMethod[SwudiParameters]):
    name = "swudi"
    summary = "WUDI in closed form under an exponential filter on the top fraction of directions"
    source = "arXiv:2606.07289"
    Parameters = SwudiParameters

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
        rank = keep_by_ratio(parameters.rank_ratio, spectrum.shape[1])
        chosen = filtered(spectrum, parameters, rank)
        if parameters.consensus_power > 0 and spectrum.num_experts > 1:
            agreement = _agreement(spectrum.statistics["expert_energy"])
            floor = parameters.consensus_floor
            chosen = chosen.times(floor + (1.0 - floor) * agreement**parameters.consensus_power)
        return factors_on_top(spectrum, chosen, rank, parameters.anchor, parameters.scale)


def _agreement(expert_energy: torch.Tensor) -> torch.Tensor:
    """Effective number of experts in each direction over N: 1 when all use it alike, 1/N when one alone does."""
    shares = expert_energy / expert_energy.sum(dim=1, keepdim=True).clamp(min=1e-30)
    effective = 1.0 / (shares**2).sum(dim=1).clamp(min=1e-12)
    return (effective / expert_energy.shape[1]).clamp(max=1.0)
