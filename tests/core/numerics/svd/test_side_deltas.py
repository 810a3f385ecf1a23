"""`side`: the same method on transposed task vectors, the mean of both, and the smaller of the two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.method import Side, SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.svd.svc import apply_svc
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank, TransposedTaskVectors
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

from ..conditioning import rounding_bound

quick = settings(deadline=None, max_examples=6)
seeds = st.integers(0, 10_000)
MEMBERS: list[tuple[str, dict[str, Any]]] = [
    ("swudi", {"exp_time": 30, "rank_ratio": 0.65}),
    ("swudi", {"consensus_power": 1.0, "output_exp_time": 3.0}),
    ("swudi_a", {}),
    ("swudi_a", {"rank_rule": "gavish_donoho", "filter": "wiener"}),
    ("swudi_soft", {"filter": "tikhonov"}),
    ("wudi_pinv", {}),
    ("wudi", {"optimizer": "sgd", "learning_rate": 0.01}),
    ("wudi", {"iterations": 20, "learning_rate": 1e-3}),
    ("optmerge", {"solver": "closed_form", "exp_time": 10}),
    ("optmerge", {"variant": "lora", "solver": "closed_form", "exp_time": 10}),
]
members = st.sampled_from(MEMBERS)
# whose rank is not read from rounding: of low-rank experts, gavish_donoho counts noise
stable = st.sampled_from([one for one in MEMBERS if one[1].get("rank_rule") != "gavish_donoho"])
sizes = st.sampled_from([(6, 11), (11, 6), (7, 7)])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transposed(vectors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [vector.T.contiguous() for vector in vectors]


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.norm().item())


@quick
@given(seed=seeds, member=members, shape=sizes, count=st.integers(1, 4))
def test_outputs_are_the_inputs_of_the_transpose(
    seed: int, member: tuple[str, dict[str, Any]], shape: tuple[int, int], count: int
) -> None:
    name, parameters = member
    vectors = list(normal(seed, count, *shape))
    found = merge_task_vectors(vectors, name, side="outputs", **parameters)
    # views of the same memory, so that the decompositions round equally, and no rank flips
    expected = merge_task_vectors([vector.T for vector in vectors], name, **parameters).T
    same(found, expected, rounding_bound(sum(shape)))


@pytest.mark.parametrize("member", MEMBERS)
def test_outputs_are_the_inputs_of_transposed_copies(member: tuple[str, dict[str, Any]]) -> None:
    name, parameters = member
    vectors = list(normal(3, 3, 9, 14))
    found = merge_task_vectors(vectors, name, side="outputs", **parameters)
    same(found, merge_task_vectors(transposed(vectors), name, **parameters).T, 1e-8)
    assert (found - merge_task_vectors(vectors, name, **parameters)).norm() > 0.01 * found.norm()


@quick
@given(seed=seeds, member=members, shape=sizes, share=st.sampled_from([None, 0.0, 0.3, 1.0]))
def test_both_is_the_weighted_mean(
    seed: int, member: tuple[str, dict[str, Any]], shape: tuple[int, int], share: float | None
) -> None:
    name, parameters = member
    vectors = list(normal(seed, 3, *shape))
    by_side = {side: merge_task_vectors(vectors, name, side=side, **parameters) for side in ("inputs", "outputs")}
    both = merge_task_vectors(vectors, name, side="both", outputs_share=share, **parameters)
    part = 0.5 if share is None else share
    expected = (1 - part) * by_side["inputs"] + part * by_side["outputs"]
    same(both, expected, rounding_bound(sum(shape)))


@quick
@given(seed=seeds, member=members, shape=sizes)
def test_smaller_is_the_named_side_bit_for_bit(
    seed: int, member: tuple[str, dict[str, Any]], shape: tuple[int, int]
) -> None:
    name, parameters = member
    vectors = list(normal(seed, 3, *shape))
    side = "outputs" if shape[0] < shape[1] else "inputs"
    smaller = merge_task_vectors(vectors, name, side="smaller", **parameters)
    assert torch.equal(smaller, merge_task_vectors(vectors, name, side=side, **parameters))


@quick
@given(
    seed=seeds,
    member=members,
    side=st.sampled_from(["outputs", "both", "smaller"]),
    anchor=st.sampled_from(["sum", "mean"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_one_expert_is_itself_on_every_side(
    seed: int, member: tuple[str, dict[str, Any]], side: str, anchor: str, dtype: torch.dtype
) -> None:
    name, parameters = member
    if parameters.get("output_exp_time"):
        parameters = {}  # it filters every merged delta, also that of one expert
    vector = normal(seed, 7, 11).to(dtype)
    merged = merge_task_vectors([vector], name, side=side, anchor=anchor, **parameters)
    same(merged, vector, rounding_bound(11, dtype=dtype))


@quick
@given(seed=seeds, member=st.sampled_from([one for one in MEMBERS if one[0] != "optmerge"]), side=st.just("both"))
def test_orthogonal_experts_give_their_sum(seed: int, member: tuple[str, dict[str, Any]], side: str) -> None:
    name, parameters = member
    if parameters.get("output_exp_time"):
        parameters = {}
    rows, columns = torch.linalg.qr(normal(seed, 9, 9))[0], torch.linalg.qr(normal(seed + 1, 12, 12))[0]
    vectors = [
        rows[:, 3 * index : 3 * index + 3] @ normal(seed + index, 3, 3) @ columns[3 * index : 3 * index + 3]
        for index in range(3)
    ]
    # Adam's steps are of the size of the learning rate, whatever the size of the gradient, which is rounding here
    tolerance = 1e-2 if name == "wudi" and "optimizer" not in parameters else 1e-9
    same(merge_task_vectors(vectors, name, side=side, **parameters), torch.stack(vectors).sum(0), tolerance)


@quick
@given(seed=seeds, member=stable, side=st.sampled_from(["outputs", "both", "smaller"]), rows=st.integers(12, 40))
def test_factors_give_what_dense_task_vectors_give(
    seed: int, member: tuple[str, dict[str, Any]], side: str, rows: int
) -> None:
    name, parameters = member
    factors = [LowRank(normal(seed + i, rows, 2), normal(seed + i + 20_000, 2, 24)) for i in range(3)]
    found = merge_task_vectors(factors, name, side=side, **parameters)
    expected = merge_task_vectors([vector.dense() for vector in factors], name, side=side, **parameters)
    same(found, expected, 1e-6)


def test_svc_calibrates_the_mean_of_both_sides() -> None:
    vectors = list(normal(5, 3, 8, 12))
    for side in ("outputs", "both", "smaller"):
        plain = merge_task_vectors(vectors, "swudi_a", side=side)
        found = merge_task_vectors(vectors, "swudi_a", side=side, calibration={"svc": {"alpha": 0.5}})
        same(found, apply_svc(plain, InMemoryTaskVectors(vectors), 0.5), 1e-9)
        # SVC is over outputs whatever the side, so it is no calibration of the transposed problem
        other = merge_task_vectors(transposed(vectors), "swudi_a", side=side, calibration={"svc": {"alpha": 0.5}})
        assert (found - other.T).norm() > 1e-3 * found.norm()


@pytest.mark.parametrize("side", ["inputs", "outputs", "smaller", None])
def test_a_share_is_refused_without_both_sides(side: str | None) -> None:
    chosen = {} if side is None else {"side": side}
    with pytest.raises(RecipeError) as caught:
        merge_task_vectors([torch.eye(3)], "swudi_a", outputs_share=0.25, **chosen)
    assert str(caught.value) == (
        f"swudi_a: outputs_share is 0.25 and side is {side or 'inputs'}; outputs_share is for side: both, expected null"
        " or no value"
    )
    merge_task_vectors([torch.eye(3)], "swudi_a", outputs_share=None, **chosen)


@pytest.mark.parametrize(("name", "value"), [("side", "output"), ("outputs_share", 1.5), ("outputs_share", -0.1)])
def test_values_that_are_refused(name: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"swudi: {name} is {value!r}"):
        merge_task_vectors([torch.eye(3)], "swudi", **{"side": "both", name: value})


def test_methods_that_are_no_least_squares_problem_have_no_side() -> None:
    with pytest.raises(RecipeError, match="iso_c has no parameter 'side'"):
        merge_task_vectors([torch.eye(3)], "iso_c", side="both")


def test_sides_of_a_shape() -> None:
    method = get_method("swudi_a")
    assert isinstance(method, SpectralMethod)

    def sides(shape: tuple[int, int], **parameters: Any) -> tuple[Side, ...]:
        return method.sides(method.Parameters(**parameters), shape)

    assert sides((3, 5)) == (Side(False, 1.0),)
    assert sides((3, 5), side="outputs") == sides((3, 5), side="smaller") == (Side(True, 1.0),)
    assert sides((5, 3), side="smaller") == sides((4, 4), side="smaller") == (Side(False, 1.0),)
    assert sides((3, 5), side="both") == (Side(False, 0.5), Side(True, 0.5))
    assert sides((3, 5), side="both", outputs_share=0.25) == (Side(False, 0.75), Side(True, 0.25))


def test_the_default_side_is_no_part_of_keys() -> None:
    """`model_dump` makes the parameters of a plan, which are hashed: keys from before there were sides stay."""
    for name in ("swudi", "swudi_a", "swudi_soft", "wudi_pinv", "wudi", "optmerge"):
        parameters = get_method(name).Parameters
        assert not {"side", "outputs_share"} & set(parameters().model_dump())
        assert parameters(side="both").model_dump()["side"] == "both"
        dumped = parameters(side="both", outputs_share=0.25).model_dump()
        assert parameters(**dumped) == parameters(side="both", outputs_share=0.25)


def test_transposed_task_vectors_are_views() -> None:
    vectors = InMemoryTaskVectors([normal(1, 4, 6), LowRank(normal(2, 4, 2), normal(3, 2, 6))])
    found = TransposedTaskVectors(vectors)
    assert (found.shape, found.num_experts, list(found.max_ranks), found.all_low_rank) == ((6, 4), 2, [4, 2], False)
    dense, factors = found
    original_dense, original_factors = vectors
    assert isinstance(dense, torch.Tensor) and isinstance(original_dense, torch.Tensor)
    assert torch.equal(dense, original_dense.T) and dense.data_ptr() == original_dense.data_ptr()
    assert isinstance(factors, LowRank) and isinstance(original_factors, LowRank)
    assert torch.equal(factors.dense(), original_factors.dense().T)
