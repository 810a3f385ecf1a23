"""The two routes to the interference spectrum give equal results, and LoRA never becomes a square matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eigenmerge.core.numerics.apply_filter import apply_factors, low_rank_form
from eigenmerge.core.numerics.interference.decompose import (
    choose_route,
    decompose_interference,
    decomposition_elements,
    decomposition_flops,
)
from eigenmerge.core.numerics.interference.gram_route import spectrum_of_operator
from eigenmerge.core.numerics.interference.operator import InterferenceOperator, accumulate
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

from ..conditioning import merge_tolerance, rounding_bound

Vectors = list[torch.Tensor | LowRank]


def lora(rows: int, columns: int, ranks: list[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    return [
        LowRank(
            torch.randn((rows, rank), generator=generator, dtype=dtype),
            torch.randn((rank, columns), generator=generator, dtype=dtype) / columns,
        )
        for rank in ranks
    ]


def mixed() -> Vectors:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn((12, 64), generator=generator, dtype=torch.float64) * 0.01, *lora(12, 64, [3, 5], seed=2)]


def dense(rows: int, columns: int, count: int) -> Vectors:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn((rows, columns), generator=generator, dtype=torch.float64) for _ in range(count)]


def dependent() -> Vectors:
    first = lora(20, 40, [4])[0]
    assert isinstance(first, LowRank)
    return [first, LowRank(first.left * 2 - 1, first.right), first]


CASES: dict[str, Vectors] = {
    "lora": lora(48, 40, [3, 4, 2]),
    "mixed": mixed(),
    "few_dense": dense(10, 50, 3),
    "one_dense": dense(10, 50, 1),
    "one_lora": lora(30, 20, [4]),
    "dependent_rows": dependent(),
    "with_zero": [
        *lora(16, 24, [3, 2]),
        LowRank(torch.zeros((16, 2), dtype=torch.float64), torch.zeros((2, 24), dtype=torch.float64)),
    ],
    "rank_zero_factor": [
        *lora(16, 24, [3]),
        LowRank(torch.zeros((16, 0), dtype=torch.float64), torch.zeros((0, 24), dtype=torch.float64)),
    ],
    "more_rows_than_columns": dense(9, 12, 3),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "wudi_pinv": {},
    "swudi": {"exp_time": 1300, "rank_ratio": 0.2},
    "swudi_a": {"rank_rule": "entropy"},
    "swudi_soft": {"anchor": "zero"},
}


def to(vectors: Vectors, dtype: torch.dtype) -> InMemoryTaskVectors:
    return InMemoryTaskVectors(vector.to("cpu", dtype) for vector in vectors)


def merge(name: str, spectrum: Spectrum, **parameters: Any) -> torch.Tensor:
    method: Any = get_method(name)
    return apply_factors(spectrum, method.factors(spectrum, method.Parameters(**parameters)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("case", CASES)
def test_routes_agree(case: str, name: str, dtype: torch.dtype, relative_error: Any) -> None:
    vectors = to(CASES[case], dtype)
    gram = merge(name, decompose_interference(vectors, route="gram"), **SETTINGS[name])
    row_space = merge(name, decompose_interference(vectors, route="row_space"), **SETTINGS[name])
    assert gram.dtype == row_space.dtype == dtype
    assert relative_error(row_space, gram) < merge_tolerance(name, CASES[case], dtype=dtype, **SETTINGS[name])


@pytest.mark.parametrize("route", ["gram", "row_space"])
@pytest.mark.parametrize("case", CASES)
def test_spectrum_is_that_of_the_definition(case: str, route: Any) -> None:
    vectors = to(CASES[case], torch.float64)
    operator = accumulate(vectors)
    spectrum = decompose_interference(vectors, route=route, with_expert_energy=True)
    values, right = spectrum.values, spectrum.right
    assert (values[:-1] >= values[1:]).all()
    # both sides use the same directions, or all of them, so gaps between eigenvalues do not matter
    tolerance = rounding_bound(max(vectors.shape))
    torch.testing.assert_close(right @ right.T, torch.eye(len(values), dtype=torch.float64), rtol=0, atol=tolerance)
    rebuilt = right.T @ (values.unsqueeze(1) * right)
    torch.testing.assert_close(rebuilt, operator.C, rtol=0, atol=tolerance * operator.C.norm().item())
    scale = operator.S.norm().item() * max(1.0, float(values[0]))
    torch.testing.assert_close(spectrum.left["target"], (operator.D @ right.T).T, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(spectrum.left["sum"], (operator.S @ right.T).T, rtol=0, atol=tolerance * scale)
    for name in ("target", "sum"):
        energy = spectrum.statistics[f"{name}_energy"]
        assert energy.dtype == torch.float64
        torch.testing.assert_close(energy, spectrum.left[name].square().sum(dim=1), rtol=tolerance, atol=0)
    # an eigenvalue is the sum of the parts of the experts
    torch.testing.assert_close(
        spectrum.statistics["expert_energy"].sum(dim=1), values, rtol=0, atol=tolerance * float(values[0])
    )
    rank = int(torch.linalg.matrix_rank(operator.C))
    assert spectrum.info["num_resolved"] == rank == len(values)
    assert spectrum.info["route"] == route
    assert spectrum.num_experts == vectors.num_experts


def test_expert_energies_agree_between_routes() -> None:
    vectors = to(CASES["mixed"], torch.float64)
    gram, row_space = (
        decompose_interference(vectors, route=route, with_expert_energy=True) for route in ("gram", "row_space")
    )
    torch.testing.assert_close(gram.statistics["expert_energy"], row_space.statistics["expert_energy"])


@pytest.mark.parametrize("route", [None, "gram", "row_space"])
def test_experts_that_are_all_zero_give_zero(route: Any) -> None:
    vectors = InMemoryTaskVectors([torch.zeros(6, 9), torch.zeros(6, 9)])
    spectrum = decompose_interference(vectors, route=route)
    assert spectrum.num_directions == 0
    for name, parameters in SETTINGS.items():
        merged = merge(name, spectrum, **parameters)
        assert torch.equal(merged, torch.zeros(6, 9))


def test_an_expert_can_be_added_to_stored_sums(relative_error: Any) -> None:
    generator = torch.Generator().manual_seed(8)
    vectors = [torch.randn((40, 24), generator=generator) for _ in range(5)]
    kept = accumulate(InMemoryTaskVectors(vectors[:4])).to_tensors()
    later = spectrum_of_operator(InterferenceOperator.from_tensors(kept).plus(vectors[4]))
    scratch = decompose_interference(InMemoryTaskVectors(vectors))
    for name, parameters in SETTINGS.items():
        tolerance = merge_tolerance(name, vectors, dtype=torch.float32, **parameters)
        assert relative_error(merge(name, later, **parameters), merge(name, scratch, **parameters)) < tolerance


class _LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_lora_is_never_a_square_matrix() -> None:
    rows, columns, ranks = 400, 500, [4, 4, 4]
    vectors = InMemoryTaskVectors(lora(rows, columns, ranks, torch.float32))
    method: Any = get_method("swudi_a")
    parameters = method.Parameters()
    with _LargestTensor() as seen:
        spectrum = method.decompose(vectors, parameters)
        left, right = low_rank_form(spectrum, method.factors(spectrum, parameters))
    assert spectrum.info["route"] == "row_space"
    assert seen.elements <= sum(ranks) * max(rows, columns)
    assert left.shape[1] == right.shape[0] == sum(ranks)
    expected = merge("swudi_a", decompose_interference(vectors, route="gram"))
    tolerance = merge_tolerance("swudi_a", list(vectors), dtype=torch.float32)
    torch.testing.assert_close(left @ right, expected, rtol=0, atol=tolerance * expected.norm().item())


def test_the_cheaper_route_is_taken() -> None:
    assert choose_route((4096, 4096), [16] * 8) == "row_space"
    assert choose_route((4096, 4096), [4096] * 4) == "gram"
    assert choose_route((1024, 4096), [1024] * 2) == "row_space"  # grouped-query k or v, two experts
    assert choose_route((1024, 4096), [1024] * 4) == "gram"  # as many rows as columns
    assert choose_route((64, 64), [16] * 4) == "gram"
    shape, ranks = (4096, 4096), [16] * 8
    assert decomposition_flops(shape, ranks, "gram") > 100 * decomposition_flops(shape, ranks, "row_space")
    assert decomposition_elements(shape, ranks, "gram") > 10 * decomposition_elements(shape, ranks, "row_space")


def test_projected_memory_does_not_grow_with_dense_experts() -> None:
    few, many = ([512] * count for count in (2, 200))
    assert decomposition_elements((512, 512), few, "gram") == decomposition_elements((512, 512), many, "gram")


def test_row_space_is_more_accurate_than_gram() -> None:
    # singular values over three decades: eigenvalues of C span six, close to the resolution of float32
    generator = torch.Generator().manual_seed(0)
    sigma = torch.logspace(0, -3, 24, dtype=torch.float64)
    vectors: Vectors = [
        torch.linalg.qr(torch.randn((24, 24), generator=generator, dtype=torch.float64))[0]
        * sigma
        @ torch.linalg.qr(torch.randn((96, 24), generator=generator, dtype=torch.float64))[0].T
        for _ in range(2)
    ]
    exact = merge("wudi_pinv", decompose_interference(to(vectors, torch.float64), route="row_space"))
    found = {
        route: (merge("wudi_pinv", decompose_interference(to(vectors, torch.float32), route=route)) - exact).norm()
        / exact.norm()
        for route in ("gram", "row_space")
    }
    # the error is eps sigma_1 / sigma_R on the row space, and eps (sigma_1 / sigma_R)^2 from C
    assert found["row_space"] < rounding_bound(1, 1e3, torch.float32)
    assert found["gram"] > 10 * found["row_space"]
    assert math.isfinite(found["gram"])
