"""merge_task_vectors: dtypes, per-expert parameters, calibration and errors. Every method: test_method_checks.py."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import eigenmerge.core
from eigenmerge.core.errors import CheckpointError, NonFiniteError, RecipeError, ShapeError
from eigenmerge.core.numerics.method import ExpertParameters
from eigenmerge.core.numerics.registry import all_methods, get_method
from eigenmerge.core.numerics.task_vectors import LowRank
from eigenmerge.core.numerics.tensor_level import merge_task_vectors


def experts(count: int = 3, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [(torch.randn((6, 8), generator=generator) / 10).to(dtype) for _ in range(count)]


def test_the_documented_example() -> None:
    v1, v2, v3 = experts(3)
    merged = eigenmerge.core.merge_task_vectors([v1, v2, v3], method="swudi", exp_time=300, rank_ratio=0.85)
    assert torch.equal(merged, merge_task_vectors((v for v in (v1, v2, v3)), exp_time=300, rank_ratio=0.85))


def test_trap_7_half_precision_is_computed_in_float32_and_cast_once() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        vectors = experts(4, dtype)
        merged = merge_task_vectors(vectors, "swudi")
        assert torch.equal(merged, merge_task_vectors([v.float() for v in vectors], "swudi").to(dtype))
    with pytest.raises(RuntimeError):  # torch has no eigendecomposition in half precision
        torch.linalg.eigh(vectors[0] @ vectors[0].T)


def test_trap_8_two_casts_change_entries() -> None:
    vectors = experts(4, torch.bfloat16)
    once = merge_task_vectors(vectors, "average", scale=0.3)
    twice = merge_task_vectors(vectors, "average") * 0.3
    assert (once != twice).any()


def test_float64_is_computed_in_float64() -> None:
    vectors = experts(3)
    exact = merge_task_vectors(vectors, "swudi")
    single = merge_task_vectors([v.float() for v in vectors], "swudi")
    assert 0 < (exact - single.double()).abs().max() < 1e-6
    mixed = merge_task_vectors([vectors[0].float(), *vectors[1:]], "average")
    assert mixed.dtype == torch.float64


def test_factors_and_matrices_mix() -> None:
    generator = torch.Generator().manual_seed(4)
    factors = LowRank(
        torch.randn((6, 2), generator=generator).double(), torch.randn((2, 8), generator=generator).double()
    )
    dense = experts(1)[0]
    for method in ("swudi", "average", "task_arithmetic", "optmerge"):
        with_factors = merge_task_vectors([factors, dense], method)
        torch.testing.assert_close(with_factors, merge_task_vectors([factors.dense(), dense], method))


def test_average_is_the_mean() -> None:
    vectors = experts(3)
    torch.testing.assert_close(merge_task_vectors(vectors, "average"), sum(vectors) / 3)
    torch.testing.assert_close(merge_task_vectors(vectors, "average", scale=0.5), sum(vectors) / 6)
    weighted = merge_task_vectors(vectors, "average", weight=[1, 2, 3])
    torch.testing.assert_close(weighted, sum(i * v for i, v in enumerate(vectors, 1)) / 3)


@pytest.mark.parametrize("method", ["swudi", "wudi_pinv", "iso_c", "task_arithmetic"])
def test_weights_belong_to_experts(method: str) -> None:
    vectors = experts(3)
    weighted = merge_task_vectors(vectors, method, weight=[1.0, 0.5, 2.0])
    by_hand = merge_task_vectors([vectors[0], vectors[1] * 0.5, vectors[2] * 2], method)
    torch.testing.assert_close(weighted, by_hand)
    torch.testing.assert_close(
        merge_task_vectors(vectors, method, weight=2), merge_task_vectors([2 * v for v in vectors], method)
    )


def test_calibration_comes_last() -> None:
    from eigenmerge.core.numerics.svd.svc import apply_svc
    from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

    vectors = experts(3)
    merged = merge_task_vectors(vectors, "swudi", calibration={"svc": {"alpha": 0.2}})
    expected = apply_svc(merge_task_vectors(vectors, "swudi"), InMemoryTaskVectors(vectors), 0.2)
    torch.testing.assert_close(merged, expected)
    default = merge_task_vectors(vectors, "swudi", calibration={"svc": {}})
    torch.testing.assert_close(default, merge_task_vectors(vectors, "swudi", calibration={"svc": {"alpha": 1 / 3}}))
    assert torch.equal(merge_task_vectors(vectors, "swudi", calibration={}), merge_task_vectors(vectors, "swudi"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "swudy"}, "did you mean 'swudi'"),
        ({"exp_tim": 3}, "swudi has no parameter 'exp_tim'; did you mean 'exp_time'"),
        ({"wieght": 3}, "did you mean 'weight'"),
        ({"exp_time": -1}, "exp_time is -1"),
        ({"rank_ratio": 1.5}, "rank_ratio is 1.5"),
        ({"anchor": "median"}, "anchor is 'median'"),
        ({"filter": "exp"}, "filter is 'exp'"),
        ({"weight": [1, 2]}, "weight has 2 values for 3 experts"),
        ({"method": "swudi_a", "rank_rule": "entrop"}, "did you mean 'entropy'"),
        ({"method": "slerp"}, "merges 1 to 2 experts, found 3"),
        ({"calibration": {"svd": {}}}, "unknown calibration 'svd'"),
        ({"calibration": {"svc": {"alpa": 1}}}, "has no parameter 'alpa'"),
        ({"calibration": {"svc": {"alpha": 0}}}, "alpha is 0"),
        ({"method": "wudi", "optimizer": "sgd", "learning_rate": 1e5}, "diverges"),
    ],
)
def test_mistakes_in_the_call(call: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        merge_task_vectors(experts(3), **call)
    assert "\n" not in str(caught.value)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(RecipeError, match="slerp needs the parameter 't'"):
        merge_task_vectors(experts(1), "slerp")


def test_tensors_that_do_not_fit() -> None:
    vectors = experts(2)
    with pytest.raises(ShapeError, match="at least one"):
        merge_task_vectors([])
    with pytest.raises(ShapeError, match=r"task vector 1 has shape \(8, 6\)"):
        merge_task_vectors([vectors[0], vectors[1].T])
    with pytest.raises(ShapeError, match=r"merges matrices.*\(6,\)"):
        merge_task_vectors([vectors[0][:, 0]])
    with pytest.raises(ShapeError, match="base has shape"):
        merge_task_vectors(vectors, "average", base=torch.zeros(2, 2))
    with pytest.raises(CheckpointError, match=r"task vector 0 is torch\.int64"):
        merge_task_vectors([torch.zeros((2, 2), dtype=torch.int64)])
    with pytest.raises(CheckpointError, match="task vector 1 is on meta"):
        merge_task_vectors([vectors[0], vectors[1].to("meta")])


@pytest.mark.parametrize("shape", [(7,), (3, 2, 2, 2), ()])
def test_direct_methods_take_any_shape(shape: tuple[int, ...]) -> None:
    vectors = [torch.full(shape, 1.0), torch.full(shape, 3.0)]
    assert torch.equal(merge_task_vectors(vectors, "average"), torch.full(shape, 2.0))
    assert torch.equal(merge_task_vectors(vectors, "task_arithmetic"), torch.full(shape, 4.0))


def test_non_finite_values_are_counted() -> None:
    vectors = experts(3)
    vectors[1][2, 3], vectors[1][0, 0] = torch.nan, torch.inf
    with pytest.raises(NonFiniteError, match="task vector 1 holds 2 NaN or Inf"):
        merge_task_vectors(vectors)
    bad = LowRank(torch.full((6, 1), torch.nan), torch.zeros(1, 8))
    with pytest.raises(NonFiniteError, match="task vector 0 holds 6"):
        merge_task_vectors([bad])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_weights(shape: tuple[int, int]) -> None:
    merged = merge_task_vectors([torch.zeros(shape), torch.zeros(shape)], "swudi_a")
    assert merged.shape == shape


def test_listing_methods_does_not_load_torch() -> None:
    program = (
        "import sys; import eigenmerge.core; from eigenmerge.core.numerics.registry import all_methods;"
        "all_methods()['swudi_a'].Parameters(rank_rule='cumvar_0.9'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "name", [name for name in all_methods() if get_method(name).Expert is ExpertParameters and name != "ace"]
)
def test_an_expert_of_weight_zero_is_no_expert(name: str, first: bool) -> None:
    method = get_method(name)
    count = min(4, method.max_experts or 4)
    if count < 2 or count - 1 < method.min_experts or method.other_experts is not None:
        pytest.skip("the number of experts is fixed")
    generator = torch.Generator().manual_seed(0)
    experts = [torch.randn(12, 16, generator=generator, dtype=torch.float64) for _ in range(count)]
    weights = [1.0, 0.5, 2.0][: count - 1]
    base = torch.randn(12, 16, generator=generator, dtype=torch.float64)
    expected = merge_task_vectors(experts[1:], name, base=base, weight=weights)
    own, other = ([0.0, *weights], experts) if first else ([*weights, 0.0], [*experts[1:], experts[0]])
    found = merge_task_vectors(other, name, base=base, weight=own)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("swudi", {"exp_time": 1e5}),
        ("swudi", {"exp_time": 1e10}),
        ("swudi", {"filter": "tikhonov", "tikhonov_alpha": 1e-8}),
        ("swudi", {"filter": "landweber", "landweber_steps": 10**8}),
        ("swudi_soft", {"gamma": 0.3}),
        ("swudi_a", {"rank_rule": "none"}),
        ("swudi_a", {"rank_rule": "gavish_donoho"}),
        ("swudi_a", {"rank_rule": "d_aware_participation_sqrt"}),
        ("swudi_a", {"rank_rule": "d_aware_entropy"}),
        ("swudi_a", {"min_rank": 60}),
        ("wudi", {"optimizer": "sgd", "learning_rate": 0.1, "iterations": 10**7}),
        ("optmerge", {"variant": "lora", "learning_rate": 0.05, "iterations": 20000}),
        ("wudi_pinv", {}),
        ("optmerge", {"solver": "closed_form", "filter": "none"}),
    ],
)
def test_filters_do_not_amplify_the_rounding_of_float32(name: str, parameters: dict[str, Any]) -> None:
    """Experts of rank 12 whose singular values fall by four decades, against the same merge in float64."""
    generator = torch.Generator().manual_seed(1)

    def expert() -> torch.Tensor:
        left, right = (torch.linalg.qr(torch.randn(64, 12, generator=generator, dtype=torch.float64)).Q for _ in "lr")
        return (left * torch.logspace(0, -4, 12, dtype=torch.float64) @ right.T).float()

    vectors = [expert() for _ in range(4)]
    expected = merge_task_vectors([vector.double() for vector in vectors], name, **parameters)
    found = merge_task_vectors(vectors, name, **parameters)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-5 * expected.norm()
