"""Storage noise against Monte Carlo: what rounding really adds to task vectors, for each dtype."""

from __future__ import annotations

import math

import pytest
import torch

from eigenmerge.core.numerics.noise.combined import sum_of
from eigenmerge.core.numerics.noise.level import noise_level
from eigenmerge.core.numerics.noise.shrinkage import shrink_singular_values
from eigenmerge.core.numerics.noise.storage_noise import StorageNoise, is_noise, rounds, spacing, storage_noise

F64 = torch.float64
DTYPES = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


def randn(*shape: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.float().to(dtype).double()


def stored_expert(
    shape: tuple[int, int], dtype: torch.dtype, change: torch.Tensor, seed: int, size: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expert, task vector and its error, of a base that the dtype holds."""
    base = rounded(randn(*shape, seed=seed, size=size), dtype)
    expert = rounded(base + change, dtype)
    return expert, expert - base, expert - base - change


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
def test_spacing_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    powers = torch.arange(-12, 8, dtype=F64)
    values = rounded(torch.cat([2.0**powers, 1.4 * 2.0**powers, torch.zeros(1)]), dtype)
    gap = spacing(values, dtype)
    assert torch.equal(rounded(values + gap, dtype), values + gap)
    assert torch.equal(rounded(values + 0.499 * gap, dtype), values)
    assert torch.equal(spacing(-values, dtype), gap)


def test_spacing_of_scaled_numbers_is_that_of_the_stored_ones() -> None:
    stored = rounded(randn(40, seed=0), torch.float8_e4m3fn)
    scale = torch.full_like(stored, 0.37)
    assert torch.allclose(
        spacing(stored * scale, torch.float8_e4m3fn, scale), 0.37 * spacing(stored, torch.float8_e4m3fn)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.02, 1.0])
def test_energy_is_that_of_real_rounding(dtype: torch.dtype, size: float) -> None:
    change = randn(128, 160, seed=1, size=0.5 * size)
    expert, task_vector, error = stored_expert((128, 160), dtype, change, 2, size)
    unchanged = task_vector == 0
    noise = storage_noise(expert, task_vector, dtype)
    found = error.masked_fill(unchanged, 0.0).square()
    assert noise.energy == pytest.approx(float(found.sum()), rel=0.12 if dtype == torch.float8_e5m2 else 0.06)
    assert float(noise.columns.sum()) == pytest.approx(noise.energy)


@pytest.mark.parametrize("changed", [0.5, 2.0, 10.0])
def test_light_tuning_has_noise_where_entries_changed_only(changed: float) -> None:
    """Changes of about a spacing in bfloat16: the model stays within the bounds that it states."""
    base = rounded(randn(200, 200, seed=3), torch.bfloat16)
    change = randn(200, 200, seed=4) * changed * spacing(base, torch.bfloat16)
    expert = rounded(base + change, torch.bfloat16)
    task_vector = expert - base
    moved = task_vector != 0
    assert 0.1 < float(moved.double().mean()) < 0.98
    noise = storage_noise(expert, task_vector, torch.bfloat16)
    found = float((task_vector - change)[moved].square().sum())
    assert 0.95 < found / noise.energy < (1.15 if changed >= 2 else 2.0)
    # every row sum counts the moved entries only
    few = storage_noise(expert[:, :50], task_vector[:, :50], torch.bfloat16)
    assert few.energy < noise.energy / 3


def test_unchanged_experts_and_float64_have_no_noise() -> None:
    base = rounded(randn(30, 40, seed=5), torch.bfloat16)
    noise = storage_noise(base, torch.zeros_like(base), torch.bfloat16)
    assert (noise.energy, noise.level, noise.norm, noise.deviation) == (0.0, 0.0, 0.0, 0.0)
    assert not rounds(torch.float64) and not rounds(torch.float32) and all(map(rounds, DTYPES))


@pytest.mark.parametrize("shape", [(8, 8), (192, 256), (300, 60)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_level_bounds_the_largest_singular_value_closely(shape: tuple[int, int], dtype: torch.dtype) -> None:
    found: list[float] = []
    for seed in range(6):
        change = randn(*shape, seed=100 + seed, size=0.7)
        expert, task_vector, error = stored_expert(shape, dtype, change, seed)
        level = storage_noise(expert, task_vector, dtype).level
        found.append(float(torch.linalg.matrix_norm(error.masked_fill(task_vector == 0, 0.0), 2)) / level)
    assert max(found) <= 1.0
    assert max(found) > (0.5 if min(shape) < 20 else 0.9)


def test_level_follows_rows_of_other_sizes() -> None:
    """Rows 30 times larger have errors 30 times larger; the mean variance would give a level far too low."""
    base = randn(160, 160, seed=6)
    base[:4] *= 30
    base = rounded(base, torch.bfloat16)
    change = randn(160, 160, seed=7, size=0.2) * base.abs().mean(dim=1, keepdim=True)
    expert = rounded(base + change, torch.bfloat16)
    noise = storage_noise(expert, expert - base, torch.bfloat16)
    largest = float(torch.linalg.matrix_norm(expert - base - change, 2))
    assert largest <= noise.level < 1.35 * largest
    by_mean = math.sqrt(noise.energy / base.numel()) * 2 * math.sqrt(160)
    assert by_mean < largest


def test_noise_of_weighted_sums_adds() -> None:
    parts = [stored_expert((100, 120), torch.bfloat16, randn(100, 120, seed=s), 50 + s) for s in range(5)]
    weights = [1.0, -0.5, 2.0, 0.3, 1.0]
    noises = [storage_noise(e, v, torch.bfloat16).times(w) for (e, v, _), w in zip(parts, weights, strict=True)]
    total = sum_of([*noises, None])
    assert total is not None and sum_of([None]) is None
    error = sum((w * part[2] for part, w in zip(parts, weights, strict=True)), torch.zeros(100, 120, dtype=F64))
    assert total.energy == pytest.approx(float(error.square().sum()), rel=0.05)
    assert 0.9 * total.level < float(torch.linalg.matrix_norm(error, 2)) <= total.level


def test_projected_noise_is_that_of_a_part() -> None:
    expert, task_vector, error = stored_expert((150, 180), torch.bfloat16, randn(150, 180, seed=8), 9)
    noise = storage_noise(expert, task_vector, torch.bfloat16).projected(40, 30)
    left, right = torch.linalg.qr(randn(150, 40, seed=10))[0], torch.linalg.qr(randn(180, 30, seed=11))[0]
    assert 0.75 * noise.level < float(torch.linalg.matrix_norm(left.T @ error @ right, 2)) <= noise.level


def test_only_tensors_without_signal_are_noise() -> None:
    """A rank-1 signal just above the edge has 3% of the energy of the noise and is no noise."""
    error = randn(128, 128, seed=12, size=0.01)
    noise = StorageNoise(torch.full((128,), 128e-4, dtype=F64), torch.full((128,), 128e-4, dtype=F64))
    assert is_noise(error, noise)
    unit = torch.ones(128, 128, dtype=F64) / 128
    assert not is_noise(error + 1.5 * noise.level * unit, noise)
    assert not is_noise(1.2 * error, noise)
    assert is_noise(torch.zeros(128, 128, dtype=F64), noise.times(0.0))


def test_level_without_noise_is_zero() -> None:
    assert noise_level(torch.zeros(3, dtype=F64), torch.zeros(4, dtype=F64)) == 0.0


@pytest.mark.parametrize("shape", [(200, 200), (80, 320)])
def test_shrinkage_gives_the_best_singular_values(shape: tuple[int, int]) -> None:
    """Against the values that minimize the error when the signal is known, u0^T u and v0^T v included."""
    rows, columns = shape
    left, right = torch.linalg.qr(randn(rows, 4, seed=20))[0], torch.linalg.qr(randn(columns, 4, seed=21))[0]
    deviation = 1.0 / math.sqrt(max(shape))
    signal = torch.tensor([6.0, 3.5, 2.2, 1.7], dtype=F64)
    clean = (left * signal) @ right.T
    best = torch.zeros(4, dtype=F64)
    shrunk = torch.zeros(4, dtype=F64)
    for seed in range(10):
        u, values, v = torch.linalg.svd(clean + randn(*shape, seed=30 + seed, size=deviation), full_matrices=False)
        best += ((u[:, :4].T @ clean) * v[:4]).sum(dim=1) / 10
        found = shrink_singular_values(values, shape, deviation)
        shrunk += found[:4] / 10
        assert int((found[4:] > 0.5).sum()) == 0
    assert torch.allclose(shrunk, best, rtol=0.06)


def test_shrinkage_without_noise_changes_nothing() -> None:
    values = torch.tensor([3.0, 1.0, 0.0])
    assert shrink_singular_values(values, (5, 3), 0.0) is values
    tiny = shrink_singular_values(values.double(), (5, 3), 1e-12)
    assert torch.allclose(tiny, values.double())


def test_the_floor_acts_where_rounding_explains_all_below_it() -> None:
    """A change of full rank has signal under the level too; there nothing is cut."""
    base = rounded(randn(120, 150, seed=40, size=0.02), torch.bfloat16)
    few = randn(120, 5, seed=41, size=0.01) @ randn(5, 150, seed=42, size=0.1)
    left, right = torch.linalg.qr(randn(120, 120, seed=43))[0], torch.linalg.qr(randn(150, 120, seed=44))[0]
    full = (left * (0.02 * torch.arange(1, 121, dtype=F64) ** -0.7)) @ right.T
    for change, acts in ((few, True), (full, False)):
        expert = rounded(base + change, torch.bfloat16)
        noise = storage_noise(expert, expert - base, torch.bfloat16)
        values = torch.linalg.svdvals(expert - base)
        assert 5 <= int((values > noise.level).sum()) < 119
        assert noise.floor(values) == (noise.level if acts else 0.0)
