"""SWUDI, SWUDI-soft, SWUDI-A and the pseudo-inverse: meaning of their parameters, and one shared spectrum."""

from __future__ import annotations

from typing import Any

import torch

from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

SHARING = ("swudi", "swudi_soft", "swudi_a", "wudi_pinv")


def experts(count: int = 4, rows: int = 9, columns: int = 10) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return list(torch.randn((count, rows, columns), generator=generator, dtype=torch.float64) / 10)


def factors_of(name: str, **parameters: Any) -> Any:
    method: Any = get_method(name)
    given = method.Parameters(**parameters)
    return method.factors(method.decompose(InMemoryTaskVectors(experts()), given), given)


def test_one_spectrum_serves_all() -> None:
    found = []
    for name in SHARING:
        method: Any = get_method(name)
        for parameters in ({}, {"anchor": "zero", "scale": 3}):
            found.append(method.decomposition(method.Parameters(**parameters)))
    swudi: Any = get_method("swudi")
    found.append(swudi.decomposition(swudi.Parameters(filter="wiener", exp_time=7, rank_ratio=0.1, alignment_rho=1)))
    assert all(identity == {"kind": "interference"} for identity in found)
    assert len({get_method(name).algorithm_version for name in SHARING}) == 1  # pyright: ignore[reportAttributeAccessIssue]
    # Only options that need more statistics than the shared spectrum contains have their own.
    assert swudi.decomposition(swudi.Parameters(consensus_power=1)) != found[0]
    assert swudi.decomposition(swudi.Parameters(output_exp_time=300)) != found[0]


def test_defaults() -> None:
    vectors = experts()
    soft = merge_task_vectors(vectors, "swudi_soft")
    assert torch.equal(merge_task_vectors(vectors), soft)
    assert torch.equal(merge_task_vectors(vectors, "swudi", exp_time=300.0, rank_ratio=None, anchor="sum"), soft)
    torch.testing.assert_close(
        merge_task_vectors(vectors, "swudi", exp_time=1e9), merge_task_vectors(vectors, "wudi_pinv")
    )
    assert torch.equal(merge_task_vectors(vectors, "iwudi"), soft)
    assert torch.equal(merge_task_vectors(vectors, "aswudi"), merge_task_vectors(vectors, "swudi_a"))


def test_rank_is_reported() -> None:
    assert factors_of("swudi", rank_ratio=0.3).rank == 3
    assert factors_of("swudi_a", max_rank_ratio=0.4).rank == 4
    assert factors_of("wudi_pinv").rank == 10


def test_filters_act_on_the_kept_directions_alone() -> None:
    factors = factors_of("swudi", rank_ratio=0.3, filter="tikhonov", tikhonov_alpha=0.05)
    assert (factors.weights["target"][3:] == 0).all() and (factors.weights["target"][:3] > 0).all()
    assert (factors.weights["sum"][3:] == 1).all() and (factors.weights["sum"][:3] < 1).all()
    assert "sum" not in factors_of("swudi", anchor="zero").weights
    torch.testing.assert_close(
        factors_of("swudi", anchor="mean").weights["sum"] * 4, factors_of("swudi").weights["sum"]
    )


def test_exponential_times_tikhonov() -> None:
    plain, ridge, both = (
        factors_of("swudi", **extra).weights["target"]
        for extra in ({}, {"filter": "tikhonov", "tikhonov_alpha": 0.05}, {"tikhonov_alpha": 0.05})
    )
    values = decompose_interference(InMemoryTaskVectors(experts())).values
    torch.testing.assert_close(both, plain * ridge * values)


def test_no_ridge_is_the_pseudo_inverse() -> None:
    vectors = [*experts(2, 3, 10)]  # rank 6 of 10: null directions keep the anchor
    torch.testing.assert_close(
        merge_task_vectors(vectors, "swudi", filter="tikhonov", tikhonov_alpha=0.0),
        merge_task_vectors(vectors, "wudi_pinv"),
    )


def test_consensus_weights_by_the_effective_number_of_experts() -> None:
    # Two directions that one expert uses each, and a third that both use equally.
    e = torch.eye(5, dtype=torch.float64)
    first = torch.outer(e[0], e[0]) + torch.outer(e[2], e[2])
    second = torch.outer(e[1], e[1]) + torch.outer(e[3], e[2])
    plain = merge_task_vectors([first, second], "swudi", filter="none", anchor="zero")
    weighted = merge_task_vectors([first, second], "swudi", filter="none", anchor="zero", consensus_power=1)
    halved = torch.diag(torch.tensor([0.5, 0.5, 1, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(weighted, plain @ halved)
    floored = merge_task_vectors(
        [first, second], "swudi", filter="none", anchor="zero", consensus_power=2, consensus_floor=0.2
    )
    share = 0.2 + 0.8 * 0.25
    torch.testing.assert_close(floored, plain @ torch.diag(torch.tensor([share, share, 1, 1, 1], dtype=torch.float64)))


def test_output_filter_by_hand() -> None:
    vectors = experts()
    theta = merge_task_vectors(vectors, "swudi")
    E = sum(v @ v.T / v.square().sum() for v in vectors)
    sigma, U = torch.linalg.eigh(E)
    expected = U * (1 - torch.exp(-30 * sigma)) @ U.T @ theta
    torch.testing.assert_close(merge_task_vectors(vectors, "swudi", output_exp_time=30), expected)
    factors = [LowRank(v[:, :2], v[:2]) for v in vectors]
    torch.testing.assert_close(
        merge_task_vectors(factors, "swudi", output_exp_time=30),
        merge_task_vectors([f.dense() for f in factors], "swudi", output_exp_time=30),
    )
    single_row = [v[:1] for v in vectors]  # the published code leaves a single row alone
    assert torch.equal(
        merge_task_vectors(single_row, "swudi", output_exp_time=30), merge_task_vectors(single_row, "swudi")
    )


def test_alignment_needs_other_layers() -> None:
    vectors = experts()
    assert torch.equal(merge_task_vectors(vectors, "swudi", alignment_rho=1.0), merge_task_vectors(vectors, "swudi"))
