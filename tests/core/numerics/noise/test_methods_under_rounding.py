"""Every method moves by a small multiple of the rounding when experts are stored in 16 bits, and why that is so.

Four experts of rank 4 are added to a base that the dtype holds, and rounded. A method's result moves by
||merge(rounded) - merge(exact)|| / ||merge(exact)||, stated in multiples of the rounding of an expert,
||rounded - exact|| / ||exact||.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.errors import RecipeError, ShapeError
from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.numerics.task_vectors import LowRank

F64 = torch.float64
DTYPES = [torch.bfloat16, torch.float16]
NEEDED: Mapping[str, Mapping[str, Any]] = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.1}}
#: Multiples that are allowed. A method that is not listed averages errors or passes them on: 2.
#: Selection by size and signs is not continuous: an entry that changes sides moves by its whole size.
BY_ENTRY = dict.fromkeys(("ties", "della", "sce", "dare_ties", "breadcrumbs_ties", "arcee_fusion"), 35.0)
MULTIPLES = {**BY_ENTRY, "knots": 35.0, "ram": 12.0, "ramplus_tl": 12.0, "model_stock": 3.0}
#: Methods that count or flatten directions: without the floor they move by more than 100 times the rounding.
COUNTING = ["core_space", "iso_c", "iso_cts", "knots", "subspace_boosting", "tsv_m", "wudi_pinv"]
SETTINGS: list[tuple[str, Mapping[str, Any]]] = [
    ("swudi_a", {"rank_rule": "storage_noise"}),
    ("swudi_a", {"rank_rule": "none"}),
    ("swudi_a", {"rank_rule": "d_aware_entropy"}),
    ("swudi", {"exp_time": 1e6}),
    ("swudi", {"filter": "shrinkage"}),
    ("optmerge", {"variant": "lora", "solver": "closed_form", "filter": "none"}),
    ("iso_c", {"calibration": {"svc": {}}}),
    ("tsv_m", {"calibration": {"svc": {}}}),
]


def draw(*shape: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@cache
def experts(dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Base, exact task vectors and rounded ones; float16 has finer steps, and gets smaller changes."""
    size = 0.004 if dtype == torch.bfloat16 else 0.0008
    base = draw(96, 128, seed=0, size=0.02).to(dtype).double()
    exact = [size * draw(96, 4, seed=10 + i) @ draw(4, 128, seed=20 + i) for i in range(4)]
    return base, exact, [(base + v).to(dtype).double() - base for v in exact]


def moved(method: str, dtype: torch.dtype, handling: str, **parameters: Any) -> float:
    """Return how far the result moves, in multiples of the rounding."""
    chosen = built_in_methods()[method]
    count = chosen.other_experts or chosen.max_experts or 4
    base, exact, rounded = experts(dtype)
    exact, rounded = exact[:count], rounded[:count]
    rounding = sum(float((a - b).norm()) for a, b in zip(rounded, exact, strict=True))
    rounding /= sum(float(v.norm()) for v in exact)
    settings = {**NEEDED.get(method, {}), **parameters}
    wanted = merge_task_vectors([v.float() for v in exact], method, base=base, **settings)
    found = merge_task_vectors(
        [v.float() for v in rounded], method, base=base, stored_as=dtype, storage_noise=handling, **settings
    )
    return float((found - wanted).norm() / wanted.norm()) / rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", sorted(built_in_methods()))
def test_results_move_by_a_small_multiple_of_the_rounding(method: str, dtype: torch.dtype) -> None:
    assert moved(method, dtype, "cut") <= MULTIPLES.get(method, 2.0)


@pytest.mark.parametrize(("method", "parameters"), SETTINGS)
@pytest.mark.parametrize("handling", ["cut", "shrink"])
def test_so_do_settings_that_keep_weak_directions(method: str, parameters: Mapping[str, Any], handling: str) -> None:
    assert moved(method, torch.bfloat16, handling, **parameters) <= 2.0


@pytest.mark.parametrize("method", COUNTING)
def test_without_the_floor_methods_that_count_directions_move_far(method: str) -> None:
    assert moved(method, torch.bfloat16, "ignore") > 100.0
    assert moved(method, torch.bfloat16, "shrink") <= MULTIPLES.get(method, 2.0)


def test_without_the_floor_other_settings_move_far_too() -> None:
    assert moved("star", torch.bfloat16, "ignore") > 4.0
    assert moved("swudi_a", torch.bfloat16, "ignore", rank_rule="storage_noise") > 50.0
    assert moved("swudi", torch.bfloat16, "ignore", exp_time=1e6) > 10.0


@pytest.mark.parametrize("method", sorted(set(built_in_methods()) - {"arcee_fusion", "nearswap"}))
def test_float32_storage_and_factors_give_the_same_bytes(method: str) -> None:
    """Known dtypes change nothing where experts are stored in float32, or are adapters."""
    chosen = built_in_methods()[method]
    count = chosen.other_experts or chosen.max_experts or 4
    base, exact, _ = experts(torch.bfloat16)
    settings = NEEDED.get(method, {})
    dense = [v.float() for v in exact[:count]]
    plain = merge_task_vectors(dense, method, base=base, **settings)
    assert torch.equal(merge_task_vectors(dense, method, base=base, stored_as=torch.float32, **settings), plain)
    factors = [LowRank(draw(96, 4, seed=i).bfloat16().float(), draw(4, 128, seed=i + 9).float()) for i in range(count)]
    plain = merge_task_vectors(factors, method, base=base, **settings)
    assert torch.equal(merge_task_vectors(factors, method, base=base, stored_as=torch.bfloat16, **settings), plain)


@pytest.mark.parametrize("method", COUNTING)
def test_experts_of_full_rank_are_merged_as_before(method: str) -> None:
    """Their weak directions are below the level of the rounding and are no rounding: nothing is left out."""
    base = draw(96, 128, seed=0, size=0.02).bfloat16().double()
    decay = torch.arange(1, 97, dtype=F64) ** -0.7
    rounded: list[torch.Tensor] = []
    for seed in range(3):
        left, right = (torch.linalg.qr(draw(n, 96, seed=50 + seed))[0] for n in (96, 128))
        rounded.append(((base + (left * (0.02 * decay)) @ right.T).bfloat16().double() - base).float())
    known, plain = (
        merge_task_vectors(rounded, method, base=base, stored_as=torch.bfloat16, storage_noise=handling)
        for handling in ("cut", "ignore")
    )
    assert torch.equal(known, plain)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "knots", "core_space", "star", "ace", "swudi_a"])
def test_experts_that_are_all_rounding_give_nothing(method: str) -> None:
    """Re-quantized to float8 with other scales, an unchanged weight differs from the base by rounding alone."""
    base = draw(64, 80, seed=1, size=0.02)
    rounded = [(base / s).float().to(torch.float8_e4m3fn).double() * s - base for s in (0.0111, 0.0123)]
    # the scales belong to the stored numbers; E4M3 is scale-free up to a factor of two within its range
    found = merge_task_vectors(rounded, method, base=base, stored_as=torch.float8_e4m3fn)
    plain = merge_task_vectors(rounded, method, base=base)
    assert float(found.norm()) < 0.05 * float(plain.norm())


def test_misused_arguments_are_refused() -> None:
    vectors = [draw(4, 5, seed=1), draw(4, 5, seed=2)]
    base = draw(4, 5, seed=3)
    with pytest.raises(RecipeError, match="stored_as is given without base"):
        merge_task_vectors(vectors, "iso_c", stored_as=torch.bfloat16)
    with pytest.raises(RecipeError, match="stored_as has 1 dtypes, expected one for each of 2"):
        merge_task_vectors(vectors, "iso_c", base=base, stored_as=[torch.bfloat16])
    with pytest.raises(RecipeError, match=r"stored_as is torch\.int8"):
        merge_task_vectors(vectors, "iso_c", base=base, stored_as=torch.int8)
    with pytest.raises(RecipeError, match="storage_noise is 'remove'; expected one of cut, shrink, ignore"):
        merge_task_vectors(vectors, "iso_c", base=base, stored_as=torch.bfloat16, storage_noise="remove")
    with pytest.raises(ShapeError, match="base has shape"):
        merge_task_vectors(vectors, "iso_c", base=base[:3], stored_as=torch.bfloat16)
