"""Plan SVC after a direct method: the matrices of its merged delta, the keys of their decompositions, and the costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ...formats.digest import hash_json
from ...formats.dtypes import tensor_bytes
from ...numerics.method import DirectMethod
from ...numerics.svd.svc import ALGORITHM_VERSION, svc_elements, svc_flops
from ...recipe.parts import Calibration
from ..cost import projection as cost
from ..keys import spectrum_key, with_noise
from ..plan import ExpertTensor, MatrixView, RunSettings, TensorPlan
from .matrices import Matrices
from .spectral import describe_matrix

_DELTA_BYTES = 8  # the merged delta is computed in float64: base + delta - base would keep the rounding of the base


def complete_calibrated(
    plan: TensorPlan,
    method: DirectMethod[Any, Any],
    calibration: Calibration,
    matrices: Matrices,
    settings: RunSettings,
    base_identity: str,
    identities: Sequence[str],
) -> TensorPlan:
    """Return the plan with the keys of the decompositions and the costs.

    The keys contain all that determines the merged delta and not the parameters of the calibration: another alpha reads
    neither experts nor decomposes.

    Parameters
    ----------
    settings : with the arithmetic of this tensor
    base_identity, identities : identify the base's tensor, and each expert's in the order of `plan.experts`
    """
    named = with_noise(identities, plan.experts)
    experts = [
        (identity, expert.parameters, expert.is_base) for identity, expert in zip(named, plan.experts, strict=True)
    ]
    inputs = hash_json([base_identity, experts])
    decomposition = {
        "kind": "svc",
        "after": [method.name, method.algorithm_version],
        "parameters": plan.parameters,
        "name": plan.name,
        "seed": settings.seed,
    }
    form = matrices.matrix_shape or plan.shape

    def key(matrix: str) -> str:
        return spectrum_key(
            decomposition,
            ALGORITHM_VERSION,
            settings.arithmetic,
            inputs,
            matrix,
            package=method.package,
            vectors=settings.rounded_vectors,
            tf32=settings.uses_tf32,
        )

    views = tuple(
        MatrixView(
            cut.label,
            cut.start,
            cut.stop,
            key(describe_matrix(form, cut, matrices.in_out)),
            cut.axis,
            index=cut.index,
            step=cut.step,
        )
        for cut in matrices.cuts
    )
    counted = calibrated_experts(plan.experts)
    element_bytes = cost.arithmetic_bytes(settings)
    flops, work, spectrum_bytes = cost.direct_cost(method, plan.shape, len(plan.experts)), 0, 0
    for cut, shape in zip(matrices.cuts or (None,), matrices.shapes(plan.shape), strict=True):
        ranks = tuple(cost.max_rank(expert, shape, cut) for expert in counted)
        low_rank = all(cost.is_low_rank(expert) for expert in counted)
        flops += svc_flops(shape, ranks, low_rank) + 2.0 * min(shape) * prod(shape)
        work = max(work, svc_elements(shape, ranks, low_rank) * element_bytes)
        spectrum_bytes += cost.spectrum_bytes(shape, min(shape), len(counted), settings, blocks=1)
        if settings.device != "cpu":
            work += cost.gpu_solver_bytes(min(shape), element_bytes)
    size, num_experts = prod(plan.shape), len(plan.experts)
    stored = cost.stored_working_set(plan.base, plan.experts) * (2 if matrices.in_out else 1)
    merging = method.peak_elements(size, num_experts) * _DELTA_BYTES
    # base and result in the arithmetic dtype, and the whole merged delta, while one matrix is decomposed
    decomposing = work + 3 * size * element_bytes + stored
    return replace(
        plan,
        reason=f"{plan.reason}; calibrated by svc",
        calibration=calibration.model_dump(mode="json", exclude_defaults=True),
        spectrum_key=None if views else key(describe_matrix(form, None, matrices.in_out)),
        matrix_shape=matrices.matrix_shape,
        views=views,
        in_out=matrices.in_out,
        bytes_read=cost.bytes_read(plan.base, plan.experts, method.passes + 1) + cost.source_bytes(plan.base),
        flops=flops,
        peak_bytes=max(merging, decomposing) + tensor_bytes(plan.out_dtype, plan.shape),
        spectrum_bytes=spectrum_bytes,
    )


def calibrated_experts(experts: Sequence[ExpertTensor]) -> tuple[ExpertTensor, ...]:
    """Return the experts that SVC counts after a direct method, with task vectors that no weight multiplies.

    As in the published code; the base among the models and an expert of weight 0 are no experts.
    """
    return tuple(
        replace(expert, parameters={})
        for expert in experts
        if not expert.is_base and expert.parameters.get("weight", 1.0) != 0
    )
