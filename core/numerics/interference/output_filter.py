"""The exponential filter on the output side: filter the eigenbasis of the rows.

    E = sum_i w_i v_i v_i^T = U diag(sigma) U^T,   theta <- U diag(1 - exp(-t sigma)) U^T theta

Shapes: M = out features (D1), K = in features (D2), R = directions, N = experts.
"""

from __future__ import annotations

import dataclasses

from ..energies import frobenius_norm
from ..lazy_torch import torch
from ..linear_algebra import eigh
from ..products.matrix_product import add_product, product
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors
from .operator import factor_orthonormal


def filter_outputs(spectrum: Spectrum, task_vectors: TaskVectors, output_exp_time: float) -> Spectrum:
    """Return the spectrum with every left block multiplied by U diag(1 - exp(-t sigma)) U^T.

    theta is linear in the left blocks, so this filters theta.

    Cost: a second pass over the experts, 2 N M^2 K + 10 M^3 flops; 5 M^2 elements, for LoRA experts too.

    References
    ----------
    "output_exp_time" of the published code of SWUDI, arXiv:2606.07289
    """
    if spectrum.shape[0] <= 1 or spectrum.num_directions == 0:  # as the published code for a single row
        return spectrum
    sigma, basis = eigh(_output_gram(task_vectors, spectrum))
    passed = -torch.expm1(-output_exp_time * sigma.clamp(min=0))
    left = {name: product(product(block, basis) * passed, basis.T) for name, block in spectrum.left.items()}
    return dataclasses.replace(spectrum, left=left)


def _output_gram(task_vectors: TaskVectors, spectrum: Spectrum) -> torch.Tensor:
    """Return E, (M, M)."""
    rows = spectrum.shape[0]
    gram = spectrum.right.new_zeros((rows, rows))
    for task_vector in task_vectors:
        if isinstance(task_vector, LowRank):
            columns, factor = factor_orthonormal(task_vector)
            norm = frobenius_norm(factor)
            if norm > 0:
                gram += product(product(columns, product(factor / norm, (factor / norm).T)), columns.T)
        else:
            norm = frobenius_norm(task_vector)
            if norm > 0:
                add_product(gram, task_vector / norm, task_vector.T / norm)
    return gram
