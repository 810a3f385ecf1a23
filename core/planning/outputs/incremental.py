"""What `keep_sums` can promise for a plan: where sums over experts are enough, and where they are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ...numerics.method import SpectralMethod
from ...numerics.registry import get_method
from ..plan import TensorPlan


def adds_up(tensor: TensorPlan) -> bool:
    """True where the task vectors do not depend on which other experts there are, so that sums of them can be kept.

    Where vocabularies differ, a row that the base lacks is the mean of the experts that have it.
    """
    in_place = tensor.base_rows is None and all(expert.rows is None for expert in tensor.experts)
    return tensor.base is not None and in_place


def incremental_warnings(tensors: Iterable[TensorPlan]) -> list[str]:
    """For a plan with `keep_sums`: what reads every expert all the same when one is added."""
    without_sums, twice = Counter[str](), Counter[str]()
    extra: dict[int, bool] = {}  # by the identity of the parameters, which tensors share
    for tensor in tensors:
        if tensor.action != "merge" or tensor.method is None:
            continue
        if tensor.sums_key is None and not any(view.sums_key for view in tensor.views):
            without_sums[tensor.method] += 1
        elif any(expert.full is not None for expert in tensor.experts):
            number = id(tensor.parameters)
            if number not in extra:
                extra[number] = _passes_twice(tensor)
            if extra[number] or tensor.calibration:
                twice[tensor.method] += 1
    found = [
        f"keep_sums: {count} tensors are merged by {method} without sums over experts; an expert that is added"
        " later costs a pass over all of them there"
        for method, count in without_sums.items()
    ]
    found += [
        f"keep_sums: {count} tensors need a second pass over all experts (SVC, consensus_power or"
        " output_exp_time); an expert that is added later saves only the first"
        for count in [twice.total()]
        if count
    ]
    return found


def _passes_twice(tensor: TensorPlan) -> bool:
    """Whether the decomposition depends on more than the sums."""
    assert tensor.method is not None
    method = get_method(tensor.method)
    assert isinstance(method, SpectralMethod), f"{tensor.method} keeps sums and is not spectral"
    return method.decomposition(method.Parameters.model_validate(dict(tensor.parameters))).keys() != {"kind"}
