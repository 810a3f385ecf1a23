"""Costs of one tensor from shapes."""

from __future__ import annotations

import pytest

from eigenmerge.core.errors import BudgetError
from eigenmerge.core.listing import LoraSource, TensorSource
from eigenmerge.core.planning.cost import projection as cost
from eigenmerge.core.planning.plan import ExpertTensor, RunSettings, TensorPlan

WEIGHT = TensorSource("/m", 0, 64, "BF16", (4, 8))
FLOAT8 = TensorSource("/m", 0, 32, "F8_E4M3", (4, 8), scale=TensorSource("/m", 32, 36, "F32", ()))
LORA = LoraSource(TensorSource("/a", 0, 32, "F32", (4, 2)), TensorSource("/a", 32, 96, "F32", (2, 8)), 1.0)
DENSE, LOW = ExpertTensor(0, WEIGHT), ExpertTensor(1, None, LORA)
BOTH, ZERO = ExpertTensor(2, FLOAT8, LORA), ExpertTensor(3, None)


def test_bytes_to_read_include_scales_and_factors() -> None:
    assert [cost.expert_bytes(expert) for expert in (DENSE, LOW, BOTH, ZERO)] == [64, 96, 36 + 96, 0]
    assert cost.bytes_read(WEIGHT, [DENSE, LOW], passes=2) == 64 + 2 * (64 + 96)
    assert cost.bytes_read(None, [DENSE], passes=1) == 64


def test_the_working_set_is_the_largest_source_and_not_the_sum() -> None:
    assert cost.stored_working_set(WEIGHT, [DENSE, LOW, BOTH]) == 36 + 96
    assert cost.stored_working_set(WEIGHT, []) == 64


def test_ranks_are_bounded_by_the_factors_and_the_shape() -> None:
    assert [cost.max_rank(expert, (4, 8)) for expert in (DENSE, LOW, BOTH, ZERO)] == [4, 2, 4, 0]
    assert cost.max_rank(LOW, (1, 8)) == 1
    assert [cost.is_low_rank(expert) for expert in (DENSE, LOW, BOTH, ZERO)] == [False, True, False, True]


def test_the_cast_holds_a_copy_only_where_the_size_changes() -> None:
    assert cost.cast_bytes((4, 8), "BF16", bytes_per_element=4) == 64
    assert cost.cast_bytes((4, 8), "F32", bytes_per_element=4) == 0
    assert cost.arithmetic_bytes(RunSettings(arithmetic="float64")) == 8


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (RunSettings(spectra="none"), 0),
        (RunSettings(spectra="values"), 3 * 8 * (8 + 2)),
        (RunSettings(), 3 * 8 * (8 + 2) + 3 * (8 + 2 * 4) * 4),
        (RunSettings(spectra_dtype="float64"), 3 * 8 * (8 + 2) + 3 * (8 + 2 * 4) * 8),
        (RunSettings(arithmetic="float64"), 3 * 8 * (8 + 2) + 3 * (8 + 2 * 4) * 8),
        (RunSettings(arithmetic="float64", spectra_dtype="float32"), 3 * 8 * (8 + 2) + 3 * (8 + 2 * 4) * 4),
    ],
)
def test_kept_bytes_of_a_spectrum_with_3_directions_and_2_experts(settings: RunSettings, expected: int) -> None:
    assert cost.spectrum_bytes((4, 8), 3, 2, settings) == expected


def test_the_budget_is_that_of_the_largest_tensor() -> None:
    small, large = (
        TensorPlan(name, (4, 8), "F32", "copy", "", WEIGHT, peak_bytes=peak) for name, peak in (("s", 10), ("l", 1001))
    )
    cost.check_budget([small, large], None)
    cost.check_budget([small, large], 1001)
    with pytest.raises(BudgetError, match=r"tensor l \[4, 8\] needs 1001 bytes .* max_memory is 1000 .*match: 'l'"):
        cost.check_budget([small, large], 1000)
