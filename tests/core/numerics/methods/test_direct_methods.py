"""Properties of all direct methods, and the errors of each. Their numbers: test_against_mergekit.py."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.method import DirectMethod
from eigenmerge.core.numerics.registry import get_method

Make = Callable[..., Any]
REQUIRED = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.1}}
ON_TASK_VECTORS = [
    *("task_arithmetic", "ties", "dare_linear", "dare_ties", "della_linear", "della"),
    *("breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "ram", "ramplus_tl"),
]
OF_MANY = [*ON_TASK_VECTORS, "linear", "multislerp", "karcher"]
ALL = [*OF_MANY, "slerp", "nuslerp", "nearswap", "arcee_fusion", "passthrough"]


def direct(name: str) -> DirectMethod[Any, Any]:
    method = get_method(name)
    assert isinstance(method, DirectMethod)
    return method


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def num_experts(name: str) -> int:
    """Return the largest number of experts beside the base that the method takes, up to three."""
    return {"passthrough": 1, "slerp": 1, "nearswap": 1, "arcee_fusion": 1, "nuslerp": 2}.get(name, 3)


def merge(name: str, inputs: Any, *, each: dict[str, Any] | None = None, **parameters: Any) -> torch.Tensor:
    method = direct(name)
    chosen = method.Parameters(**{**REQUIRED.get(name, {}), **parameters})
    if each is None:
        each = {"density": 0.5} if "density" in method.Expert.model_fields else {}
    return method.merge(inputs, chosen, [method.Expert(**each)] * inputs.num_experts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_dtype_and_shape_are_kept_and_inputs_unchanged(name: str, dtype: torch.dtype, in_memory_inputs: Make) -> None:
    tensors = [normal(4, 5, 3, seed=i).to(dtype) for i in range(num_experts(name) + 1)]
    copies = [tensor.clone() for tensor in tensors]
    merged = merge(name, in_memory_inputs(tensors[1:], tensors[0]))
    assert merged.dtype == dtype
    assert merged.shape == (4, 5, 3)
    assert torch.isfinite(merged).all()
    merged.zero_()  # the result shares no memory with the inputs
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("name", ALL)
def test_degenerate_shapes(name: str, shape: tuple[int, ...], in_memory_inputs: Make) -> None:
    base = torch.full(shape, 2.0)
    merged = merge(name, in_memory_inputs([torch.full(shape, 3.0)] * num_experts(name), base))
    assert merged.shape == shape
    assert ((merged >= 2) & (merged <= 12)).all()  # sums of up to three task vectors of one, rescaled once


@pytest.mark.parametrize("name", [*OF_MANY, "slerp", "nuslerp", "nearswap", "arcee_fusion"])
def test_experts_that_are_the_base_give_the_base(name: str, in_memory_inputs: Make) -> None:
    base = normal(6, 7)
    merged = merge(name, in_memory_inputs([base.clone() for _ in range(num_experts(name))], base))
    torch.testing.assert_close(merged, base)


@pytest.mark.parametrize("name", [*ON_TASK_VECTORS, "multislerp", "nuslerp", "slerp", "nearswap", "arcee_fusion"])
def test_the_base_among_the_models_changes_nothing(name: str, in_memory_inputs: Make) -> None:
    base, experts = normal(6, 7), [normal(6, 7, seed=i + 1) for i in range(num_experts(name))]
    plain = merge(name, in_memory_inputs(experts, base))
    # At the end, so that no other expert gets another index and other random numbers.
    listed = merge(name, in_memory_inputs([*experts, base], base, base_among=len(experts)))
    assert torch.equal(plain, listed)


@pytest.mark.parametrize("name", ["linear", "karcher"])
def test_the_base_takes_part_in_averages_of_models(name: str, in_memory_inputs: Make) -> None:
    base, expert = normal(6, 7), normal(6, 7, seed=1)
    listed = merge(name, in_memory_inputs([expert, base], base, base_among=1))
    assert torch.equal(listed, merge(name, in_memory_inputs([expert, base])))
    assert not torch.allclose(listed, expert)


@pytest.mark.parametrize("name", ON_TASK_VECTORS)
def test_only_the_base_in_the_recipe(name: str, in_memory_inputs: Make) -> None:
    if name == "model_stock":
        pytest.skip("refuses fewer than two models")
    base = normal(6, 7)
    assert torch.equal(merge(name, in_memory_inputs([base], base, base_among=0)), base)


@pytest.mark.parametrize("name", [name for name in ALL if direct(name).needs_base])
def test_a_missing_base_is_an_error(name: str, in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([normal(2, 2)] * num_experts(name), name="a.weight")
    with pytest.raises(RecipeError, match=rf"{name} needs a base_model \(for tensor 'a\.weight'\)"):
        merge(name, inputs)


class OneAtATime:
    """Inputs that create each expert on request and count how many older ones are still in memory."""

    name, seed = "w", 0

    def __init__(self, base: torch.Tensor, count: int, scale: float) -> None:
        self.base, self.num_experts, self._scale = base, count, scale
        self.reads = self.most_alive = 0
        self._formed: list[weakref.ref[torch.Tensor]] = []

    def _form(self, origin: torch.Tensor) -> Iterator[torch.Tensor]:
        self.reads += 1
        for index in range(self.num_experts):
            alive = sum(reference() is not None for reference in self._formed)
            self.most_alive = max(self.most_alive, alive)
            tensor = origin + self._scale * normal(*self.base.shape, seed=index)
            self._formed.append(weakref.ref(tensor))
            yield tensor
            del tensor

    def experts(self) -> Iterator[torch.Tensor]:
        return self._form(self.base)

    def task_vectors(self) -> Iterator[torch.Tensor]:
        return self._form(torch.zeros_like(self.base))

    def is_base(self, index: int) -> bool:
        return False


@pytest.mark.parametrize("name", OF_MANY)
def test_one_expert_in_memory_and_the_declared_number_of_passes(name: str) -> None:
    inputs = OneAtATime(normal(20, 10, seed=99), 9, 0.1)
    merge(name, inputs, **({"select_topk": 0.5} if name == "sce" else {}))
    assert inputs.most_alive == 0
    if name == "karcher":  # converges early here
        assert 1 < inputs.reads <= direct(name).passes
    else:
        assert inputs.reads == direct(name).passes


def test_model_stock_of_tiny_task_vectors_in_bounded_memory() -> None:
    inputs = OneAtATime(torch.zeros(20, 10), 9, 1e-5)
    for filter_wise in (False, True):
        inputs.reads = 0
        merge("model_stock", inputs, filter_wise=filter_wise)
        assert inputs.most_alive == 0
        assert inputs.reads > 1 + 9 / 3  # columns of nine experts within two tensors


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_described_and_misspelled_ones_refused(name: str) -> None:
    method = direct(name)
    for model in (method.Parameters, method.Expert):
        assert all(field.description for field in model.model_fields.values())
        with pytest.raises(ValidationError):
            model(**{**REQUIRED.get(name, {}), "wieght": 1.0})


def test_weights_that_sum_to_zero_are_an_error(in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([normal(3), normal(3, seed=1), normal(3, seed=2)], name="a.weight")
    for name in ("linear", "multislerp"):
        method = direct(name)
        each = [method.Expert(weight=weight) for weight in (0.1, 0.2, -0.3)]  # type: ignore[call-arg]
        with pytest.raises(RecipeError, match=r"weights for tensor 'a\.weight' sum to zero"):
            method.merge(inputs, method.Parameters(), each)


@pytest.mark.parametrize(("name", "count"), [("slerp", 2), ("nearswap", 2), ("arcee_fusion", 2), ("nuslerp", 3)])
def test_too_many_models_are_an_error(name: str, count: int, in_memory_inputs: Make) -> None:
    with pytest.raises(RecipeError, match=f"found {count} for tensor"):
        merge(name, in_memory_inputs([normal(3)] * count, normal(3)))
