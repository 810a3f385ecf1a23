"""A spectrum checks the shapes of its blocks and names the one that is wrong."""

from __future__ import annotations

import re

import pytest
import torch

from eigenmerge.core.errors import ShapeError
from eigenmerge.core.numerics.spectrum import Spectrum


def spectrum(right: tuple[int, int] = (3, 4), left: tuple[int, int] = (3, 2)) -> Spectrum:
    return Spectrum("svd_of_sum", (2, 4), 5, torch.ones(3), torch.zeros(right), {"left": torch.zeros(left)})


def test_shapes_that_fit() -> None:
    assert spectrum().num_directions == 3
    assert spectrum().statistics == spectrum().info == {}
    assert spectrum().info is not spectrum().info  # no shared default


def test_right_vectors_of_another_length() -> None:
    with pytest.raises(ShapeError, match=re.escape("right has shape (3, 5), expected (3, 4)")):
        spectrum(right=(3, 5))


def test_a_left_block_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=re.escape("left block 'left' has shape (2, 2), expected (3, 2)")):
        spectrum(left=(2, 2))
