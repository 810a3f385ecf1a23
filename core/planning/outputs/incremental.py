"""`keep_sums`: for which tensors sums over experts can be kept, and which need all experts again nevertheless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ...numerics.method import SpectralMethod
from ...numerics.registry import get_method
from ..plan import TensorPlan


def can_keep_sums(tensor: TensorPlan) -> bool:
    """Return whether each task vector is independent of the other experts, so that sums of them can be reused.

    They are not independent where vocabularies differ: a row that the base lacks is the mean of the experts that have
    it.
    """
    rows_in_place = tensor.base_rows is None and all(expert.rows is None for expert in tensor.experts)
    return tensor.base is not None and rows_in_place


def incremental_warnings(tensors: Iterable[TensorPlan]) -> list[str]:
    """Return warnings about tensors of a plan with `keep_sums` for which adding one expert reads all experts again."""
    without_sums, two_passes = Counter[str](), Counter[str]()
    second_pass: dict[int, bool] = {}  # by the id of the parameters, a mapping that tensors share
    for tensor in tensors:
        if tensor.action != "merge" or tensor.method is None:
            continue
        if tensor.sums_key is None and not any(view.sums_key for view in tensor.views):
            without_sums[tensor.method] += 1
        elif any(expert.full is not None for expert in tensor.experts):
            number = id(tensor.parameters)
            if number not in second_pass:
                second_pass[number] = _needs_second_pass(tensor)
            if second_pass[number] or tensor.calibration:
                two_passes[tensor.method] += 1
    found = [
        f"keep_sums: {count} tensors are merged by {method} without sums over experts; an expert that is added"
        " later costs a pass over all of them there"
        for method, count in without_sums.items()
    ]
    found += [
        f"keep_sums: {count} tensors need a second pass over all experts (SVC, consensus_power or"
        " output_exp_time); an expert that is added later saves only the first"
        for count in [two_passes.total()]
        if count
    ]
    return found


def _needs_second_pass(tensor: TensorPlan) -> bool:
    """Return whether the decomposition depends on more than the sums."""
    assert tensor.method is not None
    method = get_method(tensor.method)
    assert isinstance(method, SpectralMethod), f"{tensor.method} keeps sums but is not spectral"
    return set(method.decomposition(method.Parameters.model_validate(dict(tensor.parameters)))) != {"kind"}
