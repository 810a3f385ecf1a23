"""WUDI as published: gradient steps from the sum of the experts, the slow baseline of the closed forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ..apply_filter import Factors
from ..filters import landweber
from ..interference.iterate import factors_of_iterate, iterate_elements, iterate_flops, spectrum_of_iterate
from ..interference.operator import accumulate
from ..interference.wudi_family import (
    MAX_GAIN_FLOAT32,
    AnchorParameters,
    InterferenceMethod,
    anchor_factor,
    factors_of_filter,
)
from ..spectrum import Spectrum
from ..task_vectors import TaskVectors

_ITERATE = "wudi_iterate"


class WudiParameters(AnchorParameters):
    iterations: int = Field(300, ge=0, description="number of gradient steps")
    learning_rate: float = Field(1e-5, gt=0, description="step size of the optimizer")
    optimizer: Literal["adam", "sgd"] = Field(
        "adam",
        description="adam: the published solver; sgd: plain gradient descent, computed as a Landweber filter",
    )


class Wudi(InterferenceMethod[WudiParameters]):
    """minimize sum_i w_i ||(theta - v_i) v_i^T||_F^2 over theta by gradient steps from the anchor, w_i = 1/||v_i||_F^2.

    The gradient is 2 (theta C - D) with C = sum_i w_i v_i^T v_i, D = sum_i w_i v_i v_i^T v_i. Adam is iterated and its
    result stored; SGD equals the Landweber filter 1 - (1 - 2 learning_rate lambda)^iterations.

    References
    ----------
    WUDI-Merging, arXiv:2503.08099; code: github.com/nathanielyvo/WUDI-Merging
    """

    name = "wudi"
    summary = "WUDI's objective minimized by 300 Adam (or SGD) steps: the published baseline"
    source = "arXiv:2503.08099"
    Parameters = WudiParameters

    def needs_float64(self, parameters: WudiParameters) -> bool:
        gain = 2.0 * parameters.learning_rate * parameters.iterations
        return parameters.optimizer == "sgd" and gain >= MAX_GAIN_FLOAT32

    def decomposition(self, parameters: WudiParameters) -> Mapping[str, object]:
        if parameters.optimizer == "sgd":
            return {"kind": "interference"}
        return {
            "kind": _ITERATE,
            "iterations": parameters.iterations,
            "learning_rate": parameters.learning_rate,
            "anchor": parameters.anchor,
        }

    def decompose(self, task_vectors: TaskVectors, parameters: WudiParameters) -> Spectrum:
        if parameters.optimizer == "sgd":
            return super().decompose(task_vectors, parameters)
        return spectrum_of_iterate(
            _ITERATE,
            accumulate(task_vectors),
            anchor_factor(parameters.anchor, task_vectors.num_experts),
            iterations=parameters.iterations,
            learning_rate=parameters.learning_rate,
        )

    def factors(self, spectrum: Spectrum, parameters: WudiParameters) -> Factors:
        if spectrum.kind == _ITERATE:
            return factors_of_iterate(spectrum, parameters.scale)
        # Factor 2: the gradient is 2 (theta C - D).
        chosen = landweber(spectrum.values, 2.0 * parameters.learning_rate, parameters.iterations)
        return factors_of_filter(spectrum, chosen, spectrum.shape[1], parameters.anchor, parameters.scale)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        return iterate_flops(shape, len(max_ranks), WudiParameters().iterations)  # pyright: ignore[reportCallIssue]

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        return max(super().peak_elements(shape, max_ranks, all_low_rank), iterate_elements(shape))
