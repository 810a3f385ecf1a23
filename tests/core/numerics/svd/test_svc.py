"""SVC against the published algorithm, its invariances, and where it is ill-posed."""

from __future__ import annotations

import itertools

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.svd.svc import (
    apply_svc,
    calibration_warning,
    default_alpha,
    flat_spectrum_warning,
    svc_decompose,
    svc_factors,
    svc_of_filtered,
)
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

from ..conditioning import gap_condition, measured_condition, merge_tolerance, rounding_bound


def experts(num: int, rows: int, columns: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(num)]


def orthogonal_experts(num: int, size: int, dtype: torch.dtype, *, turned: bool) -> list[torch.Tensor]:
    """Experts with orthogonal row and column spaces and distinct singular values."""
    each = size // num
    generator = torch.Generator().manual_seed(7)
    left = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    made = []
    for index in range(num):
        block = torch.zeros(size, size, dtype=torch.float64)
        span = slice(index * each, (index + 1) * each)
        # neighboring singular values of the sum belong to different experts
        block[span, span] = torch.diag(1.0 + 0.1 * (torch.arange(each) * num + index).double())
        if not turned:  # rotated within its own block only: exactly orthogonal also after rounding
            mix = torch.linalg.qr(torch.randn(each, each, generator=generator, dtype=torch.float64)).Q
            block[span, span] = mix @ block[span, span] @ mix.flip(0)
        made.append((left @ block @ right if turned else block).to(dtype))
    return made


def naive_svc(merged: torch.Tensor, vectors: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """Algorithm 1 of the paper, in the dtype of its input."""
    left, values, right = torch.linalg.svd(merged, full_matrices=False)
    gamma = []
    for index in range(len(values)):
        response = left[:, index] @ merged
        shares = []
        for vector in vectors:
            own = left[:, index] @ vector
            shares.append(max(alpha, (response @ own / (own @ own).clamp_min(1e-12)).item()))
        gamma.append(len(vectors) / sum(shares))
    return (left * (torch.tensor(gamma, dtype=merged.dtype) * values)) @ right


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(20, 33), (33, 20)])
def test_equals_the_paper_s_algorithm(alpha, shape):
    vectors = experts(3, *shape)
    merged = 0.4 * sum(vectors)
    found = apply_svc(merged, InMemoryTaskVectors(vectors), alpha)
    expected = naive_svc(merged, vectors, alpha)
    condition = measured_condition(
        lambda given: apply_svc(0.4 * sum(given), InMemoryTaskVectors(given), alpha), vectors
    )
    assert (found - expected).norm() < rounding_bound(33, condition) * expected.norm()


def test_alpha_defaults_to_one_over_n():
    vectors = experts(4, 12, 15)
    merged = sum(vectors)
    default = apply_svc(merged, InMemoryTaskVectors(vectors))
    assert torch.equal(default, apply_svc(merged, InMemoryTaskVectors(vectors), 0.25))
    assert default_alpha(None, 4) == default_alpha("iso_c", 4) == 0.25
    assert default_alpha("tsv_m", 4) == 1.0


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_experts_give_the_known_factor_from_float32_too(dtype, turned):
    num, alpha = 4, 0.1
    vectors = orthogonal_experts(num, 32, dtype, turned=turned)
    merged = sum(vectors)
    known = num / (1 + (num - 1) * alpha)
    found = apply_svc(merged, InMemoryTaskVectors(vectors), alpha)
    tolerance = rounding_bound(32, gap_condition(torch.linalg.svdvals(merged.double())), dtype)
    assert (found.double() - known * merged.double()).norm() / merged.double().norm() < tolerance
    factors = svc_factors(svc_decompose(merged, InMemoryTaskVectors(vectors)), alpha)
    expected = known * torch.linalg.svdvals(merged.double())
    assert torch.allclose(factors.weights["left"].double(), expected, rtol=tolerance)


def test_the_paper_s_algorithm_in_float32_gets_orthogonal_experts_wrong():
    num, alpha = 4, 0.1
    vectors = orthogonal_experts(num, 32, torch.float32, turned=True)
    merged = sum(vectors)
    known = num / (1 + (num - 1) * alpha)
    naive = naive_svc(merged, vectors, alpha)
    assert (naive - known * merged).norm() > 0.1 * known * merged.norm()


def test_scale_of_the_merged_delta_does_not_matter_while_responses_exceed_alpha():
    common = 20.0 * torch.diag(torch.linspace(1, 2, 16, dtype=torch.float64)) @ torch.eye(16, 22, dtype=torch.float64)
    vectors = [common + v for v in experts(3, 16, 22)]
    merged = sum(vectors)
    spectrum = svc_decompose(merged, InMemoryTaskVectors(vectors))
    alpha = 0.5 * spectrum.statistics["projection"].min().item()
    assert alpha > 0
    found = [apply_svc(c * merged, InMemoryTaskVectors(vectors), alpha) for c in (1.0, 0.7, 5.0)]
    condition = measured_condition(lambda given: apply_svc(sum(given), InMemoryTaskVectors(given), alpha), vectors)
    for other in found[1:]:
        assert (other - found[0]).norm() < rounding_bound(22, condition) * found[0].norm()
    clamped = apply_svc(0.01 * merged, InMemoryTaskVectors(vectors), 0.5)
    assert (clamped - found[0]).norm() > 0.1 * found[0].norm()


def test_one_expert_is_the_result():
    vector = experts(1, 14, 9)[0]
    found = apply_svc(3.0 * vector, InMemoryTaskVectors([vector]), 0.1)
    assert (found - vector).norm() < rounding_bound(14) * vector.norm()


def test_an_expert_that_changes_nothing_does_not_count():
    changing = experts(2, 10, 12)
    vectors = [*changing, torch.zeros(10, 12, dtype=torch.float64)]
    expected = apply_svc(sum(changing), InMemoryTaskVectors(changing))
    assert torch.equal(apply_svc(sum(vectors), InMemoryTaskVectors(vectors)), expected)

    published = svc_factors(svc_decompose(sum(vectors), InMemoryTaskVectors(vectors)), 0.1, "all")
    spectrum = svc_decompose(sum(changing), InMemoryTaskVectors(changing))
    gamma = 3 / (spectrum.statistics["projection"].clamp_min(0.1).sum(dim=1) + 0.1)
    assert torch.allclose(published.weights["left"], gamma * spectrum.values)


def test_a_layer_that_one_of_eight_adapters_touches_keeps_its_size():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((20, 4), (4, 24)))
    empty = LowRank(torch.zeros(20, 0), torch.zeros(0, 24))
    vectors = InMemoryTaskVectors([LowRank(left, right), *[empty] * 7])
    assert torch.allclose(apply_svc(left @ right, vectors), left @ right, atol=1e-4)


def test_weak_directions_that_experts_share_are_not_enlarged():
    """Eight equal experts give the expert back, also along directions of 1e-4 of its norm."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    expert = left * torch.logspace(0, -4, 64, dtype=torch.float64) @ right
    found = apply_svc(8 * expert, InMemoryTaskVectors([expert] * 8))
    assert (left.T @ (found - expert) @ right.T).abs().max() < 1e-9


def test_a_zero_delta_stays_zero():
    vectors = experts(2, 6, 8)
    zero = torch.zeros(6, 8, dtype=torch.float64)
    assert not apply_svc(zero, InMemoryTaskVectors(vectors)).any()


def test_another_alpha_needs_only_the_spectrum():
    vectors = experts(3, 18, 18)
    spectrum = svc_decompose(sum(vectors), InMemoryTaskVectors(vectors))
    assert spectrum.kind == "svc" and spectrum.statistics["projection"].shape == (18, 3)
    for alpha in (0.05, 0.3, 1.0):
        swept = apply_factors(spectrum, svc_factors(spectrum, alpha))
        assert torch.equal(swept, apply_svc(sum(vectors), InMemoryTaskVectors(vectors), alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_equal_the_dense_path(dtype):
    generator = torch.Generator().manual_seed(5)
    vectors = [
        LowRank(torch.randn(40, 3, generator=generator).to(dtype), torch.randn(3, 50, generator=generator).to(dtype))
        for _ in range(4)
    ]
    dense = [v.dense() for v in vectors]
    stacked = LowRank(0.3 * torch.cat([v.left for v in vectors], dim=1), torch.cat([v.right for v in vectors]))
    found = apply_svc(stacked, InMemoryTaskVectors(vectors), 0.2)
    expected = apply_svc(0.3 * sum(dense), InMemoryTaskVectors(dense), 0.2)
    merged = torch.linalg.svdvals(stacked.dense().double())[:12]
    assert (found - expected).norm() / expected.norm() < rounding_bound(50, gap_condition(merged), dtype)


def _merged(name: str, vectors: list[torch.Tensor]) -> tuple[SpectralMethod, object, object]:
    method = get_method(name)
    assert isinstance(method, SpectralMethod)
    parameters = method.Parameters()
    spectrum = method.decompose(InMemoryTaskVectors(vectors), parameters)
    return method, spectrum, method.factors(spectrum, parameters)


@pytest.mark.parametrize("name", ["tsv_m", "knots", "star"])
def test_the_directions_of_a_spectrum_need_no_second_svd(name):
    vectors = experts(3, 24, 20)
    _, spectrum, factors = _merged(name, vectors)
    reused = svc_of_filtered(spectrum, factors, InMemoryTaskVectors(vectors))  # type: ignore[arg-type]
    found = apply_factors(reused, svc_factors(reused, 0.2))
    expected = apply_svc(apply_factors(spectrum, factors), InMemoryTaskVectors(vectors), 0.2)  # type: ignore[arg-type]
    # the error of the merged delta turns its singular vectors by that over the gaps of its singular values
    merged = torch.linalg.svdvals(apply_factors(spectrum, factors))[: reused.num_directions]  # type: ignore[arg-type]
    tolerance = merge_tolerance(name, vectors) * gap_condition(merged)
    assert (found - expected).norm() < tolerance * expected.norm()


def test_a_spectrum_with_other_directions_is_decomposed():
    """Identical experts: TSV-M's vectors are shared between them, so they are not orthonormal."""
    vectors = experts(1, 24, 20) * 3
    _, spectrum, factors = _merged("tsv_m", vectors)
    reused = svc_of_filtered(spectrum, factors, InMemoryTaskVectors(vectors))  # type: ignore[arg-type]
    expected = svc_decompose(apply_factors(spectrum, factors), InMemoryTaskVectors(vectors))  # type: ignore[arg-type]
    assert torch.allclose(reused.values[:6], expected.values[:6])


def test_after_iso_c_only_the_published_algorithm_is_arbitrary():
    vectors = experts(3, 20, 26)
    noise = experts(3, 20, 26, seed=11)
    changed = [v + 1e-12 * n for v, n in zip(vectors, noise, strict=True)]

    def calibrated(data: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        _, spectrum, factors = _merged("iso_c", data)
        reused = svc_of_filtered(spectrum, factors, InMemoryTaskVectors(data))  # type: ignore[arg-type]
        ours = apply_factors(reused, svc_factors(reused, 0.1))
        return naive_svc(apply_factors(spectrum, factors), data, 0.1), ours  # type: ignore[arg-type]

    (naive, ours), (naive_changed, ours_changed) = calibrated(vectors), calibrated(changed)
    assert (naive_changed - naive).norm() > 0.02 * naive.norm()
    change = (sum(changed) - sum(vectors)).norm() / sum(vectors).norm()
    bound = 10 * gap_condition(torch.linalg.svdvals(sum(vectors))) * change  # 10: condition of the calibration itself
    assert (ours_changed - ours).norm() < bound * ours.norm() < 1e-6 * ours.norm()


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_a_flat_spectrum_is_warned_of(name):
    vectors = experts(3, 20, 26)
    _, spectrum, factors = _merged(name, vectors)
    flat = svc_decompose(apply_factors(spectrum, factors), InMemoryTaskVectors(vectors))  # type: ignore[arg-type]
    assert "ill-posed" in (flat_spectrum_warning(flat) or "")
    assert "ill-posed" in (calibration_warning(name) or "")
    well_posed = svc_decompose(sum(vectors), InMemoryTaskVectors(vectors))
    assert flat_spectrum_warning(well_posed) is None


def test_only_flattening_methods_are_warned_of_beforehand():
    assert [name for name in ("swudi", "tsv_m", "task_arithmetic", "star") if calibration_warning(name)] == []


def test_order_of_experts_only_orders_the_projections():
    vectors = experts(3, 10, 14)
    merged = sum(vectors)
    expected = apply_svc(merged, InMemoryTaskVectors(vectors), 0.2)
    for order in itertools.permutations(range(3)):
        found = apply_svc(merged, InMemoryTaskVectors([vectors[i] for i in order]), 0.2)
        assert (found - expected).norm() < rounding_bound(3) * expected.norm()
