"""Complete the plan of a spectral merge: a tensor's matrices, the keys of their decompositions, and the costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, final

from ...formats.digest import hash_json
from ...formats.dtypes import tensor_bytes
from ...numerics.interference.stored_form import stored_elements, stored_form
from ...numerics.method import MethodParameters, SpectralMethod
from ...numerics.svd.svc import ALGORITHM_VERSION as SVC_VERSION
from ...numerics.svd.svc import svc_elements, svc_flops
from ...recipe.recipe import Recipe
from ..cost import projection as cost
from ..keys import alignment_key, calibration_key, spectrum_key, sums_key
from ..plan import Cut, MatrixView, RunSettings, TensorPlan, spectrum_keys
from .incremental import can_keep_sums
from .matrices import Matrices

_INTERFERENCE = "interference"  # the kind of decomposition that is computed from sums over experts


@final
class SpectralPlanner:
    """Completes the plans of tensors that a spectral method merges."""

    def __init__(self, recipe: Recipe, settings: RunSettings) -> None:
        self._settings = settings
        self._element_bytes = cost.arithmetic_bytes(settings)
        self._calibration: Mapping[str, object] = (
            recipe.calibration.model_dump(mode="json", exclude_defaults=True) if recipe.calibration is not None else {}
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
        """Return the plan with keys, views and costs.

        Parameters
        ----------
        base_identity : identifies the base's tensor
        identities : identify each expert's tensor, in the order of `plan.experts`
        """
        decomposition = self._decomposition(method, plan.parameters)
        experts = [(identity, expert.parameters) for identity, expert in zip(identities, plan.experts, strict=True)]
        inputs = hash_json([base_identity, experts])  # computed once for all matrices of a stack
        filter_hash = hash_json([method.name, plan.parameters, SVC_VERSION]) if self._calibration else ""
        keeps = self._settings.keep_sums and decomposition.get("kind") == _INTERFERENCE and can_keep_sums(plan)
        members = tuple(hash_json(expert) for expert in experts) if keeps else ()
        form = matrices.matrix_shape or plan.shape

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
                vectors=self._settings.rounded_vectors,
                tf32=self._settings.uses_tf32,
            )
            calibrated = calibration_key(own, filter_hash) if self._calibration else None
            sums = None
            if keeps:
                version, tf32 = method.algorithm_version, self._settings.uses_tf32
                sums = sums_key(version, arithmetic, base_identity, matrix, members, tf32=tf32)
            return own, calibrated, sums

        views = tuple(
            MatrixView(cut.label, cut.start, cut.stop, own, cut.axis, calibrated, sums, cut.index, cut.step)
            for cut in matrices.cuts
            for own, calibrated, sums in [keys(describe_matrix(form, cut, matrices.in_out))]
        )
        whole = (None, None, None) if views else keys(describe_matrix(form, None, matrices.in_out))
        flops, work, spectrum_bytes, sums_bytes = 0.0, 0, 0, 0
        for cut, shape in zip(matrices.cuts or (None,), matrices.shapes(plan.shape), strict=True):
            ranks = tuple(cost.max_rank(expert, shape, cut) for expert in plan.experts)
            low_rank = all(cost.is_low_rank(expert) for expert in plan.experts)
            one_flops, one_work, one_spectrum, one_sums = self._cost(
                method, decomposition, shape, ranks, low_rank=low_rank, keeps=keeps
            )
            flops += one_flops
            work = max(work, one_work)
            spectrum_bytes += one_spectrum
            sums_bytes += one_sums
        stored = cost.stored_working_set(plan.base, plan.experts) * (2 if matrices.in_out else 1)  # and its transpose
        held = prod(plan.shape) * self._element_bytes  # the base; the method's work space includes the task vectors
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
            in_out=matrices.in_out,
            bytes_read=cost.bytes_read(plan.base, plan.experts, passes),
            flops=flops,
            peak_bytes=work + held + stored + tensor_bytes(plan.out_dtype, plan.shape),
            spectrum_bytes=spectrum_bytes,
            sums_bytes=sums_bytes,
        )

    def _decomposition(
        self, method: SpectralMethod[Any, Any], parameters: Mapping[str, object]
    ) -> Mapping[str, object]:
        # By id, because a resolver returns one mapping for equal parameters; the entry keeps the mapping alive.
        key = (method.name, id(parameters))
        entry = self._decompositions.get(key)
        if entry is None:
            model = method.Parameters.model_validate(dict(parameters))
            assert isinstance(model, MethodParameters)
            entry = self._decompositions[key] = (method.decomposition(model), parameters)
        return entry[0]

    def _cost(
        self,
        method: SpectralMethod[Any, Any],
        decomposition: Mapping[str, object],
        shape: tuple[int, int],
        ranks: tuple[int, ...],
        *,
        low_rank: bool,
        keeps: bool,
    ) -> tuple[float, int, int, int]:
        """Return operations, peak bytes of the work space, and kept bytes of spectra and of sums, for one matrix."""
        # The WUDI family keeps two sets of left vectors, the target's and the sum's; other methods keep one.
        blocks = 2 if decomposition.get("kind") == _INTERFERENCE else 1
        key = (method.name, blocks, shape, ranks, low_rank, keeps)
        costs = self._costs.get(key)
        if costs is None:
            sums = held = 0
            if keeps:
                form = stored_form(shape, ranks, low_rank)
                sums = stored_elements(shape, ranks, form) * self._element_bytes
                if form == "operator":
                    ranks = (shape[1],) * len(ranks)  # C, (K, K), is decomposed, whatever the experts' ranks
                held = sums if form == "factors" else 0  # the factors of every expert, in addition to their stack
            flops, work, directions = cost.spectral_cost(method, shape, ranks, low_rank, self._element_bytes)
            kept = cost.spectrum_bytes(shape, directions, len(ranks), self._settings, blocks)
            if self._calibration:
                rank = min(*shape, directions) if low_rank else None
                flops += svc_flops(shape, ranks, low_rank, rank)
                own = directions * (shape[1] + blocks * shape[0])  # the method's spectrum, held at the same time
                work = max(work, (svc_elements(shape, ranks, low_rank, rank) + own) * self._element_bytes)
                kept += cost.spectrum_bytes(shape, min(*shape, directions), len(ranks), self._settings)
            if self._settings.device != "cpu":
                work += cost.gpu_solver_bytes(directions, self._element_bytes)
            costs = self._costs[key] = (flops, work + held, kept, sums)
        return costs


def describe_matrix(form: tuple[int, ...], cut: Cut | None, in_out: bool) -> str:
    """Return the shape and the cut of a matrix, for its keys."""
    if cut is None:
        return f"{list(form)}" + ("/in_out" if in_out else "")
    if cut.axis == 0 and cut.step == 1 and not in_out:  # rows of a stack are rows of its 2-D form
        first = (cut.index or 0) * form[-2]
        flat = [form[0] * form[1], form[2]] if len(form) == 3 else list(form)
        return f"{flat}/0:{first + cut.start}:{first + cut.stop}"
    at = f"{cut.index}/" if cut.index is not None else ""
    suffix = (f":{cut.step}" if cut.step > 1 else "") + ("/in_out" if in_out else "")
    return f"{list(form)}/{at}{cut.axis}:{cut.start}:{cut.stop}{suffix}"


def alignment_keys(tensors: Iterable[TensorPlan]) -> dict[str, str]:
    """Return the alignment key by tensor name, for tensors whose filter depends on the eigenvalues of other layers.

    All layers that one method merges with `alignment_rho` form one group, as in the published code. The group's key is
    the hash of their spectrum keys.
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


def add_alignment(tensor: TensorPlan, key: str) -> TensorPlan:
    """Return the plan with its alignment key; calibrations depend on the other layers, so their keys change too."""

    def calibrated(own: str | None) -> str | None:
        return calibration_key(own, key) if own is not None else None

    views = tuple(replace(view, calibration_key=calibrated(view.calibration_key)) for view in tensor.views)
    return replace(tensor, alignment_key=key, calibration_key=calibrated(tensor.calibration_key), views=views)
