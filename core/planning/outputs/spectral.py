"""What only spectral methods have: the matrices of a tensor, the keys of their decompositions, and what those cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, final

from ...formats.digest import hash_json
from ...numerics.interference.stored_form import stored_elements, stored_form
from ...numerics.method import MethodParameters, SpectralMethod
from ...numerics.svd.svc import ALGORITHM_VERSION as SVC_VERSION
from ...numerics.svd.svc import svc_elements, svc_flops
from ...recipe.recipe import Recipe
from ..cost import projection as cost
from ..keys import alignment_key, calibration_key, spectrum_key, sums_key
from ..plan import ExpertTensor, MatrixView, RunSettings, TensorPlan, spectrum_keys
from .incremental import adds_up
from .matrices import Matrices

_INTERFERENCE = "interference"  # the decomposition that is made of sums over experts, which can be kept


@final
class SpectralPlanner:
    """Completes the plans of tensors that a spectral method merges."""

    def __init__(self, recipe: Recipe, settings: RunSettings) -> None:
        self._settings = settings
        self._element = cost.element_bytes(settings)
        self._calibration: Mapping[str, object] = (
            recipe.calibration.model_dump(mode="json", exclude_none=True) if recipe.calibration is not None else {}
        )
        self._decompositions: dict[tuple[str, int], tuple[Mapping[str, object], Mapping[str, object]]] = {}
        self._costs: dict[object, tuple[float, int, int, int]] = {}

    def complete(
        self,
        plan: TensorPlan,
        method: SpectralMethod[Any, Any],
        matrices: Matrices,
        base_identity: str,
        identities: Sequence[str],
    ) -> TensorPlan:
        """The plan with keys, views and costs.

        Parameters
        ----------
        identities : of each expert's tensor, in the order of `plan.experts`
        """
        decomposition = self._decomposition(method, plan.parameters)
        experts = [(identity, expert.parameters) for identity, expert in zip(identities, plan.experts, strict=True)]
        inputs = hash_json([base_identity, experts])  # once, also for a stack of hundreds of matrices
        filtered = hash_json([method.name, plan.parameters, SVC_VERSION]) if self._calibration else ""
        keeps = self._settings.keep_sums and decomposition.get("kind") == _INTERFERENCE and adds_up(plan)
        members = tuple(hash_json(expert) for expert in experts) if keeps else ()
        form = f"{list(matrices.matrix_shape or plan.shape)}"

        def keys(matrix: str) -> tuple[str, str | None, str | None]:
            arithmetic = self._settings.arithmetic
            own = spectrum_key(
                decomposition,
                method.algorithm_version,
                arithmetic,
                inputs,
                matrix,
                incremental=keeps,
                package=method.package,
            )
            calibrated = calibration_key(own, filtered) if self._calibration else None
            sums = None
            if keeps:
                sums = sums_key(method.algorithm_version, arithmetic, base_identity, matrix, members)
            return own, calibrated, sums

        views = tuple(
            MatrixView(cut.label, cut.start, cut.stop, own, cut.axis, calibrated, sums)
            for cut in matrices.cuts
            for own, calibrated, sums in [keys(f"{form}/{cut.axis}:{cut.start}:{cut.stop}")]
        )
        whole = (None, None, None) if views else keys(form)
        flops, work, spectrum_bytes, sums_bytes = 0.0, 0, 0, 0
        for shape in matrices.shapes(plan.shape):
            one_flops, one_work, one_spectrum, one_sums = self._cost(method, decomposition, shape, plan.experts, keeps)
            flops += one_flops
            work = max(work, one_work)
            spectrum_bytes += one_spectrum
            sums_bytes += one_sums
        stored = cost.stored_working_set(plan.base, plan.experts)
        held = prod(plan.shape) * self._element  # the base; the method's work space counts its own task vectors
        passes = getattr(method, "passes", 1) + bool(self._calibration)
        return replace(
            plan,
            calibration=self._calibration,
            spectrum_key=whole[0],
            calibration_key=whole[1],
            sums_key=whole[2],
            members=members,
            matrix_shape=matrices.matrix_shape,
            views=views,
            bytes_read=cost.bytes_read(plan.base, plan.experts, passes),
            flops=flops,
            peak_bytes=work + held + stored + cost.output_bytes(plan.shape, plan.out_dtype),
            spectrum_bytes=spectrum_bytes,
            sums_bytes=sums_bytes,
        )

    def _decomposition(
        self, method: SpectralMethod[Any, Any], parameters: Mapping[str, object]
    ) -> Mapping[str, object]:
        # By identity: the resolver hands out one mapping for one outcome, and the entry keeps it alive.
        key = (method.name, id(parameters))
        known = self._decompositions.get(key)
        if known is None:
            model = method.Parameters.model_validate(dict(parameters))
            assert isinstance(model, MethodParameters)
            known = self._decompositions[key] = (method.decomposition(model), parameters)
        return known[0]

    def _cost(
        self,
        method: SpectralMethod[Any, Any],
        decomposition: Mapping[str, object],
        shape: tuple[int, int],
        experts: Sequence[ExpertTensor],
        keeps: bool,
    ) -> tuple[float, int, int, int]:
        """Of one matrix: operations, peak bytes of the work space, bytes that the store keeps of spectra and sums."""
        ranks = tuple(cost.max_rank(expert, shape) for expert in experts)
        low_rank = all(cost.is_low_rank(expert) for expert in experts)
        # The WUDI family keeps two blocks of left vectors, the target's and the sum's; the others one.
        blocks = 2 if decomposition.get("kind") == _INTERFERENCE else 1
        key = (method.name, blocks, shape, ranks, low_rank, keeps)
        known = self._costs.get(key)
        if known is None:
            sums = held = 0
            if keeps:
                form = stored_form(shape, ranks, low_rank)
                sums = stored_elements(shape, ranks, form) * self._element
                if form == "operator":
                    ranks = (shape[1],) * len(ranks)  # decomposed from C, (K, K), whatever the experts' ranks
                held = sums if form == "factors" else 0  # every expert's factors, besides the stack of them
            flops, work, directions = cost.spectral_cost(method, shape, ranks, low_rank, self._element)
            kept = cost.spectrum_bytes(shape, directions, len(ranks), self._settings, blocks)
            if self._calibration:
                rank = min(*shape, directions) if low_rank else None
                flops += svc_flops(shape, ranks, low_rank, rank)
                own = directions * (shape[1] + blocks * shape[0])  # the method's spectrum, which is still held
                work = max(work, (svc_elements(shape, ranks, low_rank, rank) + own) * self._element)
                kept += cost.spectrum_bytes(shape, min(*shape, directions), len(ranks), self._settings)
            known = self._costs[key] = (flops, work + held, kept, sums)
        return known


def align(tensors: Iterable[TensorPlan]) -> dict[str, str]:
    """Alignment key by tensor name, for the tensors whose filter depends on the eigenvalues of other layers.

    All layers that one method merges with `alignment_rho` are one group, as in the published code; its key is made of
    their spectrum keys.
    """
    groups: dict[str, list[TensorPlan]] = {}
    for tensor in tensors:
        if (
            tensor.method is not None
            and tensor.parameters.get("alignment_rho")
            and (tensor.spectrum_key or tensor.views)
        ):
            groups.setdefault(tensor.method, []).append(tensor)
    found: dict[str, str] = {}
    for group in groups.values():
        keys = [key for tensor in group for key in spectrum_keys(tensor)]
        key = alignment_key(sorted(keys))
        found.update((tensor.name, key) for tensor in group)
    return found


def with_alignment(tensor: TensorPlan, key: str) -> TensorPlan:
    """The plan of an aligned tensor: what is calibrated then depends on the other layers too."""

    def calibrated(own: str | None) -> str | None:
        return calibration_key(own, key) if own is not None else None

    views = tuple(replace(view, calibration_key=calibrated(view.calibration_key)) for view in tensor.views)
    return replace(tensor, alignment_key=key, calibration_key=calibrated(tensor.calibration_key), views=views)
