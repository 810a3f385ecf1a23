"""The output-side companion of the exponential filter: the rows' eigenbasis, filtered like the columns'.

    E = sum_i w_i v_i v_i^T = U diag(sigma) U^T,   theta <- U diag(1 - exp(-t sigma)) U^T theta

Shapes: M = out features (D1), K = in features (D2), R = directions, N = experts.
"""

from __future__ import annotations

import dataclasses

from ..energies import frobenius_norm
from ..lazy_torch import torch
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors
from .operator import factor_orthonormal


def filter_outputs(spectrum: Spectrum, task_vectors: TaskVectors, output_exp_time: float) -> Spectrum:
    """Multiply every left block by U diag(1 - exp(-t sigma)) U^T: all of theta stands on the left blocks.

    Cost: a second pass over the experts, 2 N M^2 K + 10 M^3 flops; 5 M^2 elements, for LoRA experts too.

    References
    ----------
    "output_exp_time" of the published code of SWUDI, arXiv:2606.07289
    """
    if spectrum.shape[0] <= 1 or spectrum.num_directions == 0:  # the published code leaves a single row alone
        return spectrum
    sigma, U = torch.linalg.eigh(_output_gram(task_vectors, spectrum))
    passed = -torch.expm1(-output_exp_time * sigma.clamp(min=0))
    left = {name: (block @ U * passed) @ U.T for name, block in spectrum.left.items()}
    return dataclasses.replace(spectrum, left=left)


def _output_gram(task_vectors: TaskVectors, spectrum: Spectrum) -> torch.Tensor:
    rows = spectrum.shape[0]
    gram = spectrum.right.new_zeros((rows, rows))
    for task_vector in task_vectors:
        if isinstance(task_vector, LowRank):
            columns, factor = factor_orthonormal(task_vector)
            norm = frobenius_norm(factor)
            if norm > 0:
                gram += columns @ (factor / norm @ (factor / norm).T) @ columns.T
        else:
            norm = frobenius_norm(task_vector)
            if norm > 0:
                gram.addmm_(task_vector / norm, task_vector.T / norm)
    return gram
