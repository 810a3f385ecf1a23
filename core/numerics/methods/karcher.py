"""Karcher mean: the point of the sphere with the least sum of squared great-circle distances to the models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from ..elementwise.blocks import blockwise_norm, inner_product
from ..elementwise.expert_inputs import EXPERT_TENSORS, enumerate_tensors
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs

# Iterations that read every model. Further ones work on the inner products of the models, computed once.
_STREAMED_ITERATIONS = 10


class KarcherParameters(MethodParameters):
    max_iter: int = Field(10, ge=0, description="maximum number of iterations; the first ten read every model")
    tol: float = Field(
        1e-5, gt=0, description="stop when the step is shorter; models with a smaller norm have no direction"
    )


# A step shorter than this many units of rounding is rounding.
_PRECISION = 4.0


def karcher_coefficients(products: torch.Tensor, max_iter: int, tol: float) -> torch.Tensor:
    """Return the Karcher mean of unit vectors as coefficients of these vectors.

    Parameters
    ----------
    products : Tensor, (N, N), float64
        Inner products of the vectors.

    Returns
    -------
    Tensor, (N,), float64
    """
    coefficients = torch.full((len(products),), 1.0 / len(products), dtype=torch.float64)

    def length(vector: torch.Tensor) -> float:
        return math.sqrt(max(0.0, float(vector @ products @ vector)))

    start = length(coefficients)
    coefficients = coefficients / start if start >= tol else torch.eye(len(products), dtype=torch.float64)[0]
    for _ in range(max_iter):
        cosines = (products @ coefficients).clamp(-1.0, 1.0)
        angles = torch.acos(cosines)
        factors = torch.where((angles >= tol) & (angles <= math.pi - tol), angles / torch.sin(angles), 0.0)
        factors = torch.nan_to_num(factors) / len(products)
        step = factors - float((factors * cosines).sum()) * coefficients
        step_length = length(step)
        if step_length < max(tol, _PRECISION * torch.finfo(torch.float64).eps):
            break
        coefficients = math.cos(step_length) * coefficients + math.sin(step_length) / step_length * step
        coefficients = coefficients / length(coefficients)
    return coefficients


class Karcher(DirectMethod[KarcherParameters, MethodParameters]):
    """(1/N) sum_i ||x_i|| times the Karcher mean m of the directions x_i / ||x_i|| on the unit sphere.

    Riemannian gradient steps m <- exp_m(mean_i log_m(x_i / ||x_i||)), from the normalized mean of the directions. The
    base is one of the models, whether the recipe lists it or not, as in mergekit.

    The steps end at `tol`, or at the precision of the tensor: a shorter step is rounding. The mean is a combination of
    the directions; after ten iterations it is therefore computed from their inner products, so that thousands of
    iterations cost N (N + 1) / 2 + N reads of a model and not thousands of passes.

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
    algorithm_version = 2  # 2: steps end at the precision of the tensor

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
        smallest = max(parameters.tol, _PRECISION * torch.finfo(mean.dtype).eps)
        for iteration in range(parameters.max_iter):
            if iteration == _STREAMED_ITERATIONS:
                del mean
                mean = self._mean_by_inner_products(inputs, norms, parameters.max_iter, parameters.tol)
                break
            step = self._compute_step(inputs, mean, norms, parameters.tol)
            step_length = blockwise_norm(step)
            if step_length < smallest:
                break
            mean.mul_(math.cos(step_length)).add_(step, alpha=math.sin(step_length) / step_length)
            length = blockwise_norm(mean)
            if length > parameters.tol:
                mean.div_(length)
        return mean.mul_(sum(norms) / len(norms))

    @staticmethod
    def _mean_by_inner_products(
        inputs: TensorInputs, norms: Sequence[float], max_iter: int, tol: float
    ) -> torch.Tensor:
        """Return the mean direction, iterated on the inner products of the directions in float64."""
        chosen = [index for index, norm in enumerate(norms) if norm > tol]
        products = torch.eye(len(chosen), dtype=torch.float64)
        for row, index in enumerate(chosen[:-1]):
            held = next(tensor for position, tensor in enumerate_tensors(inputs.experts()) if position == index)
            for position, tensor in enumerate_tensors(inputs.experts()):
                if position > index and position in chosen:
                    column = chosen.index(position)
                    cosine = inner_product(held, tensor) / (norms[index] * norms[position])
                    products[row, column] = products[column, row] = cosine
                del tensor
            del held
        coefficients = karcher_coefficients(products, max_iter, tol)
        mean: torch.Tensor | None = None
        for position, tensor in enumerate_tensors(inputs.experts()):
            mean = torch.zeros_like(tensor) if mean is None else mean
            if position in chosen:
                mean.add_(tensor, alpha=float(coefficients[chosen.index(position)]) / norms[position])
            del tensor
        assert mean is not None
        return mean.div_(blockwise_norm(mean))

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
