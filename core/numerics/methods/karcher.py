"""Karcher mean: the point of the sphere with the least sum of squared great-circle distances to the models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from ..elementwise.blocks import blockwise_norm, inner_product
from ..elementwise.expert_inputs import EXPERT_TENSORS, enumerate_tensors
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs


class KarcherParameters(MethodParameters):
    max_iter: int = Field(10, ge=0, description="maximum number of iterations; each reads every model")
    tol: float = Field(
        1e-5, gt=0, description="stop when the step is shorter; models with a smaller norm have no direction"
    )


class Karcher(DirectMethod[KarcherParameters, MethodParameters]):
    """(1/N) sum_i ||x_i|| times the Karcher mean m of the directions x_i / ||x_i|| on the unit sphere.

    Riemannian gradient steps m <- exp_m(mean_i log_m(x_i / ||x_i||)), from the normalized mean of the directions. The
    base is one of the models where the recipe lists it.

    Cost: one pass to start and one per iteration, usually three: models of one family are nearly parallel.

    References
    ----------
    Functionality-Oriented LLM Merging on the Fisher-Rao Manifold, arXiv:2603.04972 (its spherical proxy)
    """

    name = "karcher"
    summary = "mean direction of the models on the sphere, at their mean norm"
    source = "arXiv:2603.04972"
    Parameters = KarcherParameters
    Expert = MethodParameters
    needs_base = False
    passes = 3

    def merge(
        self, inputs: TensorInputs, parameters: KarcherParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        norms: list[float] = []
        mean: torch.Tensor | None = None
        first: torch.Tensor | None = None  # the start where the mean direction is zero
        for _, tensor in enumerate_tensors(inputs.experts()):
            if inputs.num_experts == 1:
                return tensor.clone()
            norms.append(blockwise_norm(tensor))
            mean = torch.zeros_like(tensor) if mean is None else mean
            if norms[-1] > parameters.tol:
                first = tensor / norms[-1] if first is None else first
                mean.add_(tensor, alpha=1 / norms[-1])
            del tensor
        assert mean is not None
        num_directions = sum(value > parameters.tol for value in norms)
        if first is None:
            return mean  # every model is zero
        mean.div_(num_directions)
        length = blockwise_norm(mean)
        mean = first if length < parameters.tol else mean.div_(length)
        del first
        for _ in range(parameters.max_iter):
            step = self._compute_step(inputs, mean, norms, parameters.tol)
            step_length = blockwise_norm(step)
            if step_length < parameters.tol:
                break
            mean.mul_(math.cos(step_length)).add_(step, alpha=math.sin(step_length) / step_length)
            length = blockwise_norm(mean)
            if length > parameters.tol:
                mean.div_(length)
        return mean.mul_(sum(norms) / len(norms))

    @staticmethod
    def _compute_step(inputs: TensorInputs, mean: torch.Tensor, norms: Sequence[float], tol: float) -> torch.Tensor:
        """Return the mean over the models of the logarithmic map at `mean`."""
        step = torch.zeros_like(mean)
        along_mean = 0.0
        num_directions = sum(value > tol for value in norms)
        for index, tensor in enumerate_tensors(inputs.experts()):
            length = norms[index]
            cosine = min(1.0, max(-1.0, inner_product(mean, tensor) / length)) if length > tol else 1.0
            angle = math.acos(cosine)
            # A model at the mean or opposite to it defines no tangent direction.
            if tol <= angle <= math.pi - tol:
                factor = angle / math.sin(angle) / num_directions
                step.add_(tensor, alpha=factor / length)
                along_mean += factor * cosine
            del tensor
        return step.add_(mean, alpha=-along_mean)

    def peak_tensors(self, num_experts: int) -> float:
        return EXPERT_TENSORS + 2  # mean and step
