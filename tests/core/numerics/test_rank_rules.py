"""Rank rules on spectra of known rank, with float32 rounding noise, and at their bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.rank_rules import select_rank
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

EVERY_RULE = [
    "none",
    "stable_rank",
    "entropy",
    "entropy_sq",
    "participation",
    "participation_sqrt",
    "participation_sqrt_plus",
    "participation_sqrt_c2",
    "participation_sqrt_c2_half",
    "gavish_donoho",
    "d_aware_participation_sqrt",
    "d_aware_cumvar",
    "d_aware_entropy",
    "cumvar_0.95",
    "loss_elbow",
    "loss_elbow_0.05",
    "loss_residual_0.99",
    "wudi_risk",
    "wudi_risk_0.5",
]


def rank(rule: str, values: torch.Tensor, columns: int | None = None, **options: float) -> int:
    length = columns or len(values)
    return select_rank(rule, values, {}, (length, length), **options)  # pyright: ignore[reportArgumentType]


def low_rank_layer(dtype: torch.dtype) -> InMemoryTaskVectors:
    generator = torch.Generator().manual_seed(0)
    return InMemoryTaskVectors(
        (torch.randn((48, 3), generator=generator) @ torch.randn((3, 48), generator=generator) / 48).to(dtype)
        for _ in range(4)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [("participation_sqrt", 6), ("participation", 3), ("stable_rank", 2), ("cumvar_0.95", 5), ("none", 20)],
)
def test_powers_of_two(rule: str, expected: int, dtype: torch.dtype) -> None:
    assert rank(rule, 2.0 ** -torch.arange(20, dtype=dtype)) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rule", ["stable_rank", "entropy", "entropy_sq", "participation", "participation_sqrt"])
def test_the_rank_of_equal_eigenvalues_is_their_number(rule: str, dtype: torch.dtype) -> None:
    noise = 1 + torch.finfo(dtype).eps * torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -2.0, -2.0], dtype=dtype)
    assert rank(rule, noise * 0.3) == 7  # ceil without slack gives 8: the quotient is 7.0000002


def test_d_aware_rules_count_directions_of_the_solution() -> None:
    # all of D in the first two directions, whatever the eigenvalues
    values = torch.tensor([1.0, 0.9, 0.8, 0.7]).double()
    energy = torch.tensor([1.0, 0.81, 0.0, 0.0]).double()
    for rule, expected in (("d_aware_participation_sqrt", 2), ("d_aware_cumvar", 2), ("d_aware_entropy", 2)):
        assert select_rank(rule, values, {"target_energy": energy}, (4, 4)) == expected


def test_loss_rules_by_hand() -> None:
    values = torch.tensor([1.0, 0.5, 0.1]).double()
    statistics = {
        "target_energy": torch.tensor([4.0, 1.0, 0.02]).double(),
        "sum_energy": torch.tensor([6.0, 4.0, 3.0]).double(),
    }
    # L(K) with the anchor at the sum: terms 10, 2, 0.05
    assert [select_rank(f"loss_elbow_{f}", values, statistics, (3, 3)) for f in (0.9, 0.2, 0.17, 0.01, 0.004)] == [
        1, 1, 2, 2, 3,
    ]  # fmt: skip
    assert select_rank("loss_residual_0.83", values, statistics, (3, 3)) == 2
    # risk: K=0: 12.05+13, K=1: 2.05+4+7, K=2: .05+8+3, K=3: 0+8+2=10
    assert select_rank("wudi_risk", values, statistics, (3, 3)) == 3
    # anchor zero: terms 4, 1, 0.02; norms only inside: 0, 4, 8, 10
    assert select_rank("wudi_risk", values, statistics, (3, 3), anchor_factor=0.0) == 1
    assert select_rank("wudi_risk_0.1", values, statistics, (3, 3), anchor_factor=0.0) == 2


def test_gavish_donoho_by_hand() -> None:
    # square: omega / mu = sqrt(16/3) / sqrt(2 + sqrt 3)
    threshold = math.sqrt(16 / 3) / math.sqrt(2 + math.sqrt(3))
    roots = torch.tensor([1.01 * threshold, 0.99 * threshold, 1.0, 1.0, 1.0]).double()
    assert rank("gavish_donoho", roots.square()) == 1
    assert rank("gavish_donoho", torch.ones(5)) == 1  # no value is above the threshold: at least one


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_trap_2_float32_counts_like_float64(rule: str) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        for route in ("gram", "row_space"):
            spectrum = decompose_interference(low_rank_layer(dtype), route=route)  # pyright: ignore[reportArgumentType]
            found.append(select_rank(rule, spectrum.values, spectrum.statistics, spectrum.shape))
    assert len(set(found)) == 1


def test_trap_2_without_a_cut_noise_is_counted() -> None:
    vectors = list(low_rank_layer(torch.float32))
    C = sum(v.T @ v / v.square().sum() for v in vectors)  # pyright: ignore[reportAttributeAccessIssue]
    D = sum(v @ (v.T @ v) / v.square().sum() for v in vectors)  # pyright: ignore[reportAttributeAccessIssue]
    values, Q = torch.linalg.eigh(C)
    values, energy = values.clamp(min=1e-8).flip(0), (D @ Q).square().sum(dim=0).flip(0)
    statistics = {"target_energy": energy, "resolved": torch.ones(48)}
    naive = select_rank("d_aware_cumvar", values, statistics, (48, 48))
    assert naive > 12 == torch.linalg.matrix_rank(C.double(), rtol=1e-5)


def test_eigenvalues_that_are_left_out_count_as_zeros() -> None:
    values = torch.tensor([1.0, 0.5, 0.25])
    for rule in ("none", "entropy", "participation_sqrt", "participation_sqrt_plus", "gavish_donoho", "cumvar_0.99"):
        padded = torch.cat([values, torch.zeros(997)])
        assert rank(rule, values, columns=1000) == rank(rule, padded)
    assert rank("none", values, columns=1000) == 1000
    # 997 eigenvalues at the floor of 1e-8 change participation_sqrt: (2.207 + 0.0997)^2 / 1.75
    assert rank("participation_sqrt", values, columns=1000) == 4
    assert rank("participation_sqrt", values) == 3


def test_bounds_and_scale() -> None:
    values = 2.0 ** -torch.arange(20).double()  # participation_sqrt 6
    assert rank("participation_sqrt", values, rank_scale=0.5) == 3
    assert rank("participation_sqrt", values, rank_scale=2.0) == 12
    assert rank("participation_sqrt", values, rank_scale=0.01) == 1
    assert rank("participation_sqrt", values, min_rank=9) == 9
    assert rank("participation_sqrt", values, max_rank_ratio=0.2) == 4
    assert rank("participation_sqrt", values, rank_scale=2.0, max_rank_ratio=0.2) == 4
    assert rank("participation_sqrt", values, min_rank=7, max_rank_ratio=0.2) == 7
    assert rank("none", values, rank_scale=5.0) == 20
    assert rank("none", values, min_rank=50) == 20


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(1e-10, 8.0), min_size=1, max_size=30),
    rule=st.sampled_from(EVERY_RULE),
    extra=st.integers(0, 5),
)
def test_every_rule_counts_within_the_columns(values: list[float], rule: str, extra: int) -> None:
    descending = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    statistics = {"target_energy": descending**3, "sum_energy": descending}
    columns = len(values) + extra
    found = select_rank(rule, descending, statistics, (7, columns))
    assert 1 <= found <= columns


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_zero_experts_and_no_columns(rule: str) -> None:
    nothing = torch.zeros(0)
    assert 1 <= select_rank(rule, nothing, {}, (5, 8)) <= 8
    assert select_rank(rule, nothing, {}, (5, 0)) == 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("participation_sqr", "did you mean 'participation_sqrt'"),
        ("stablerank", "did you mean 'stable_rank'"),
        ("cumvar", "needs a number"),
        ("cumvar_x", "needs a number"),
        ("cumvar_1.5", "between 0 and 1"),
        ("loss_residual_0", "between 0 and 1"),
        ("wudi_risk_-1", "above 0"),
        ("wudi_risk_nan", "above 0"),
        ("zzz", "expected one of"),
    ],
)
def test_unknown_rules_are_named(rule: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rank(rule, torch.ones(3))
