"""SWUDI-A: WUDI's truncated pseudo-inverse, with a rank chosen per layer by a rule on the eigenvalues."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from ..apply_filter import Factors
from ..filters import FilterName
from ..interference.wudi_family import (
    FilterParameters,
    InterferenceMethod,
    amplifies_rounding,
    anchor_factor,
    evaluate_filter,
    factors_of_filter,
)
from ..rank_rules import find_rule, select_rank
from ..spectrum import Spectrum

# Rules whose rank depends on large eigenvalues alone. The others keep, or read their rank from, eigenvalues that are
# rounding in float32: results of gavish_donoho and d_aware_* were 14 to 35% off those of float64.
_RULES_OF_LARGE_VALUES = ("stable_rank", "entropy", "participation")


def _check_rule(rule: str) -> str:
    find_rule(rule)
    return rule


class SwudiAParameters(FilterParameters):
    filter: FilterName = Field("none", description="none | exponential | tikhonov | landweber | wiener | shrinkage")
    rank_rule: Annotated[str, AfterValidator(_check_rule)] = Field(
        "participation_sqrt",
        description="rule for the number of directions to keep in each layer; docs/methods/swudi_a.md lists the rules",
    )
    rank_scale: float = Field(1.0, gt=0, description="factor on the rule's rank")
    min_rank: int = Field(1, ge=0, description="smallest number of directions to keep")
    max_rank_ratio: float = Field(
        1.0, gt=0, le=1, description="largest number of directions to keep, as a fraction of the input dimensions"
    )


class SwudiA(InterferenceMethod[SwudiAParameters]):
    """theta_0 + sum_k f_k/lambda_k (D - theta_0 C) q_k q_k^T, by default with f_k = 1 on the first K directions.

    K comes from `rank_rule`, is multiplied by `rank_scale` and limited to [min_rank, round(max_rank_ratio D2)].
    Notation as in SwudiSoft.

    References
    ----------
    SWUDI, arXiv:2606.07289; the objective is that of WUDI, arXiv:2503.08099
    """

    name = "swudi_a"
    aliases = ("aswudi",)
    summary = "WUDI's closed form on the top directions, their number from a rank rule per layer"
    source = "arXiv:2606.07289"
    Parameters = SwudiAParameters

    def needs_float64(self, parameters: SwudiAParameters) -> bool:
        if not parameters.rank_rule.startswith(_RULES_OF_LARGE_VALUES):
            return True
        extends_rank = parameters.rank_scale > 2.0 or parameters.min_rank > 1
        if parameters.filter == "none" and parameters.gamma == 1.0 and not extends_rank:
            return False  # the rule bounds the gain
        return amplifies_rounding(parameters)

    def factors(self, spectrum: Spectrum, parameters: SwudiAParameters) -> Factors:
        rank = select_rank(
            parameters.rank_rule,
            spectrum.values,
            spectrum.statistics,
            spectrum.shape,
            anchor_factor=anchor_factor(parameters.anchor, spectrum.num_experts),
            rank_scale=parameters.rank_scale,
            min_rank=parameters.min_rank,
            max_rank_ratio=parameters.max_rank_ratio,
        )
        return factors_of_filter(
            spectrum, evaluate_filter(spectrum, parameters, rank), rank, parameters.anchor, parameters.scale
        )
