"""Complete the plan of a spectral merge: a tensor's matrices, the keys of their decompositions, and the costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, final

from ...formats.digest import hash_json
from ...formats.dtypes import tensor_bytes
from ...numerics.interference.stored_form import stored_elements, stored_form
from ...numerics.interference.top_directions import VERSION as TOP_VERSION
from ...numerics.interference.top_directions import most_directions
from ...numerics.interference.wudi_family import rank_by_ratio
from ...numerics.method import MethodParameters, Side, SpectralMethod
from ...numerics.svd.svc import ALGORITHM_VERSION as SVC_VERSION
from ...numerics.svd.svc import svc_elements, svc_flops
from ...recipe.recipe import Recipe
from ..cost import projection as cost
from ..keys import alignment_key, calibration_key, spectrum_key, sums_key, top_spectrum_key, with_noise
from ..plan import (
    Cut,
    ExpertTensor,
    MatrixView,
    OutputsKeys,
    RunSettings,
    TensorPlan,
    decompositions,
    matrix_shape_of,
    top_keys,
)
from .incremental import can_keep_sums
from .matrices import Matrices

_INTERFERENCE = "interference"  # the kind of decomposition that is computed from sums over experts


@dataclass(frozen=True, slots=True)
class _SideCost:
    """Costs of one decomposition: operations and bytes.

    held : bytes beyond those of the work space, for kept factors
    ranks : of the experts, as they are decomposed
    """

    flops: float
    work: int
    kept: int
    sums: int
    held: int
    directions: int
    ranks: tuple[int, ...]


@final
class SpectralPlanner:
    """Completes the plans of tensors that a spectral method merges."""

    def __init__(self, recipe: Recipe, settings: RunSettings) -> None:
        self._settings = settings
        self._element_bytes = cost.arithmetic_bytes(settings)
        self._calibration: Mapping[str, object] = (
            recipe.calibration.model_dump(mode="json", exclude_defaults=True) if recipe.calibration is not None else {}
        )
        self._decompositions: dict[
            tuple[str, int], tuple[Mapping[str, object], MethodParameters, Mapping[str, object]]
        ] = {}
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
        decomposition, parameters = self._decomposition(method, plan.parameters)
        named = with_noise(identities, plan.experts)
        experts = [(identity, expert.parameters) for identity, expert in zip(named, plan.experts, strict=True)]
        inputs = hash_json([base_identity, experts])  # computed once for all matrices of a stack
        filter_hash = hash_json([method.name, plan.parameters, SVC_VERSION]) if self._calibration else ""
        keeps = self._settings.keep_sums and decomposition.get("kind") == _INTERFERENCE and can_keep_sums(plan)
        members = tuple(hash_json(expert) for expert in experts) if keeps else ()
        form = matrices.matrix_shape or plan.shape

        def side_keys(matrix: str, shape: tuple[int, int]) -> OutputsKeys:
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
            whole = own if self._keeps_top(decomposition, plan.experts, shape) else None
            own = top_spectrum_key(own, TOP_VERSION) if whole is not None else own
            if not keeps:
                return OutputsKeys(own, whole_key=whole)
            version, tf32 = method.algorithm_version, self._settings.uses_tf32
            sums = sums_key(version, arithmetic, base_identity, matrix, members, tf32=tf32)
            return OutputsKeys(own, sums, whole)

        def keys(cut: Cut | None, sides: Sequence[Side], shape: tuple[int, int]) -> dict[str, Any]:
            """Return the fields of a view, or of the tensor, that say how a matrix is decomposed."""
            matrix = describe_matrix(form, cut, matrices.in_out)
            first, *rest = [
                side_keys(matrix + ("/outputs" if side.over_outputs else ""), side.shape_of(shape)) for side in sides
            ]
            calibrated = None
            if self._calibration:
                hashed = hash_json([filter_hash, *(other.spectrum_key for other in rest)]) if rest else filter_hash
                calibrated = calibration_key(first.spectrum_key, hashed)
            return {
                "spectrum_key": first.spectrum_key,
                "sums_key": first.sums_key,
                "whole_key": first.whole_key,
                "calibration_key": calibrated,
                "over_outputs": sides[0].over_outputs,
                "outputs": rest[0] if rest else None,
            }

        views: list[MatrixView] = []
        whole: dict[str, Any] = {}
        over: set[str] = set()
        flops, work, spectrum_bytes, sums_bytes, num_sides = 0.0, 0, 0, 0, 1
        for cut, shape in zip(matrices.cuts or (None,), matrices.shapes(plan.shape), strict=True):
            sides = method.sides(parameters, shape)
            num_sides = max(num_sides, len(sides))
            over.add(_describe_sides(sides))
            if cut is None:
                whole = keys(cut, sides, shape)
            else:
                place = {"axis": cut.axis, "index": cut.index, "step": cut.step}
                views.append(MatrixView(cut.label, cut.start, cut.stop, **place, **keys(cut, sides, shape)))
            ranks = tuple(cost.max_rank(expert, shape, cut) for expert in plan.experts)
            low_rank = all(cost.is_low_rank(expert) for expert in plan.experts)
            one_flops, one_work, one_spectrum, one_sums = self._cost(
                method,
                decomposition,
                sides,
                shape,
                ranks,
                low_rank=low_rank,
                keeps=keeps,
                kept_in_part=tuple(self._keeps_top(decomposition, plan.experts, one.shape_of(shape)) for one in sides),
            )
            flops += one_flops
            work = max(work, one_work)
            spectrum_bytes += one_spectrum
            sums_bytes += one_sums
        stored = cost.stored_working_set(plan.base, plan.experts) * (2 if matrices.in_out else 1)  # and its transpose
        held = prod(plan.shape) * self._element_bytes  # the base; the method's work space includes the task vectors
        passes = getattr(method, "passes", 1) * num_sides + bool(self._calibration)
        return replace(
            plan,
            **whole,
            reason="; ".join([plan.reason, *sorted(over - {""})]),
            calibration=self._calibration,
            members=members,
            matrix_shape=matrices.matrix_shape,
            views=tuple(views),
            in_out=matrices.in_out,
            bytes_read=cost.bytes_read(plan.base, plan.experts, passes),
            flops=flops,
            peak_bytes=work + held + stored + tensor_bytes(plan.out_dtype, plan.shape),
            spectrum_bytes=spectrum_bytes,
            sums_bytes=sums_bytes,
        )

    def _keeps_top(
        self, decomposition: Mapping[str, object], experts: Sequence[ExpertTensor], shape: tuple[int, int]
    ) -> bool:
        """Return whether the store keeps vectors of the leading directions only.

        Other decompositions are kept whole, because every setting uses all of their directions (Iso-C, TSV-M, SVC); and
        so are those of adapters and of small matrices, which have few.

        Parameters
        ----------
        shape : of the matrices that are decomposed
        """
        # with any other parameter (output_exp_time, ...) the left vectors are not those of the sum of the experts
        plain = decomposition.get("kind") == _INTERFERENCE and set(decomposition) <= {"kind", "with_expert_energy"}
        if self._settings.spectra != "top" or not plain or all(cost.is_low_rank(expert) for expert in experts):
            return False
        ranks = [cost.max_rank(expert, shape) for expert in experts]
        return min(shape[1], sum(ranks)) > most_directions(shape[1])

    def _decomposition(
        self, method: SpectralMethod[Any, Any], parameters: Mapping[str, object]
    ) -> tuple[Mapping[str, object], MethodParameters]:
        """Return what identifies the decomposition, and the validated parameters."""
        # By id, because a resolver returns one mapping for equal parameters; the entry keeps the mapping alive.
        key = (method.name, id(parameters))
        entry = self._decompositions.get(key)
        if entry is None:
            model = method.Parameters.model_validate(dict(parameters))
            assert isinstance(model, MethodParameters)
            entry = self._decompositions[key] = (method.decomposition(model), model, parameters)
        return entry[:2]

    def _cost(
        self,
        method: SpectralMethod[Any, Any],
        decomposition: Mapping[str, object],
        sides: tuple[Side, ...],
        shape: tuple[int, int],
        ranks: tuple[int, ...],
        *,
        low_rank: bool,
        keeps: bool,
        kept_in_part: tuple[bool, ...],
    ) -> tuple[float, int, int, int]:
        """Return operations, peak bytes of the work space, and kept bytes of spectra and of sums, for one matrix."""
        # The WUDI family keeps two sets of left vectors, the target's and the sum's; other methods keep one.
        blocks = 2 if decomposition.get("kind") == _INTERFERENCE else 1
        key = (method.name, blocks, sides, shape, ranks, low_rank, keeps, kept_in_part)
        costs = self._costs.get(key)
        if costs is None:
            parts = [
                self._side_cost(method, blocks, side.shape_of(shape), ranks, low_rank=low_rank, keeps=keeps, top=top)
                for side, top in zip(sides, kept_in_part, strict=True)
            ]
            flops, kept = sum(part.flops for part in parts), sum(part.kept for part in parts)
            work, directions = max(part.work for part in parts), max(part.directions for part in parts)
            if len(parts) > 1:  # the sum of the sides' deltas, while the next side is decomposed
                work += prod(shape) * self._element_bytes
            if self._calibration:
                ranks = parts[0].ranks
                rank = min(*shape, sum(part.directions for part in parts)) if low_rank else None
                flops += svc_flops(shape, ranks, low_rank, rank)
                rows, columns = sides[0].shape_of(shape)
                # the spectrum, held at the same time; of several sides only their sum, which svc_elements counts
                own = directions * (columns + blocks * rows) if len(parts) == 1 else 0
                work = max(work, (svc_elements(shape, ranks, low_rank, rank) + own) * self._element_bytes)
                kept += cost.spectrum_bytes(shape, min(*shape, directions), len(ranks), self._settings)
            if self._settings.device != "cpu":
                work += cost.gpu_solver_bytes(directions, self._element_bytes)
            work += max(part.held for part in parts)
            costs = self._costs[key] = (flops, work, kept, sum(part.sums for part in parts))
        return costs

    def _side_cost(
        self,
        method: SpectralMethod[Any, Any],
        blocks: int,
        shape: tuple[int, int],
        ranks: tuple[int, ...],
        *,
        low_rank: bool,
        keeps: bool,
        top: bool,
    ) -> _SideCost:
        """Return the costs of one decomposition; `shape` is that of the matrices that are decomposed."""
        sums = held = 0
        if keeps:
            form = stored_form(shape, ranks, low_rank)
            sums = stored_elements(shape, ranks, form) * self._element_bytes
            if form == "operator":
                ranks = (shape[1],) * len(ranks)  # C, (K, K), is decomposed, whatever the experts' ranks
            held = sums if form == "factors" else 0  # the factors of every expert, in addition to their stack
        flops, work, directions = cost.spectral_cost(method, shape, ranks, low_rank, self._element_bytes)
        most = most_directions(shape[1]) if top else None
        kept = cost.spectrum_bytes(shape, directions, len(ranks), self._settings, blocks, most)
        work += shape[0] * shape[1] * self._element_bytes if top else 0  # the sum of the experts
        return _SideCost(flops, work, kept, sums, held, directions, ranks)


def _describe_sides(sides: Sequence[Side]) -> str:
    """Return what the plan says of a matrix that is not decomposed over its inputs alone."""
    if len(sides) > 1:
        return "over both sides"
    return "over outputs" if sides[0].over_outputs else ""


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


def top_warnings(tensors: Iterable[TensorPlan]) -> list[str]:
    """Return a warning where the rank ratio of the recipe uses more directions than `spectra: top` keeps."""
    beyond: list[tuple[str, int, int, object]] = []
    for tensor in tensors:
        ratio = tensor.parameters.get("rank_ratio")
        if not top_keys(tensor) or not isinstance(ratio, (int, float)):
            continue
        view = tensor.views[0] if tensor.views else None
        rows, columns = matrix_shape_of(tensor.matrix_shape or tensor.shape, view, tensor.in_out)
        columns = rows if decompositions(tensor, view)[0].over_outputs else columns
        if rank_by_ratio(ratio, columns) > most_directions(columns):
            beyond.append((tensor.name, rank_by_ratio(ratio, columns), columns, ratio))
    if not beyond:
        return []
    name, used, columns, ratio = beyond[0]
    others = f" and {len(beyond) - 1} other tensors" if len(beyond) > 1 else ""
    return [
        f"spectra: top keeps at most {most_directions(columns)} of {columns} directions of {name}, and rank_ratio"
        f" {ratio} uses {used}: every run decomposes it{others} again; spectra: full keeps them"
    ]


def alignment_keys(tensors: Iterable[TensorPlan]) -> dict[str, tuple[str | None, str | None]]:
    """Return the alignment keys by tensor name, for tensors whose filter depends on the eigenvalues of other layers.

    All decompositions of one side that one method filters with `alignment_rho` form one group, as in the published code
    for inputs. So the result over both sides is the mean of those over inputs and over outputs. The group's key is the
    hash of the spectrum keys.

    Returns
    -------
    mapping of tensor name to the keys for its decompositions over inputs and over outputs; None where it has none
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    sides: dict[str, set[tuple[str, bool]]] = {}
    for tensor in tensors:
        if tensor.method is None or not tensor.parameters.get("alignment_rho"):
            continue
        for view in tensor.views or (None,):
            for one in decompositions(tensor, view):
                group = (tensor.method, one.over_outputs)
                groups.setdefault(group, []).append(one.spectrum_key)
                sides.setdefault(tensor.name, set()).add(group)
    keys = {group: alignment_key(sorted(spectra)) for group, spectra in groups.items()}
    found: dict[str, tuple[str | None, str | None]] = {}
    for name, own in sides.items():
        by_side = {over_outputs: keys[method, over_outputs] for method, over_outputs in own}
        found[name] = by_side.get(False), by_side.get(True)
    return found


def add_alignment(tensor: TensorPlan, keys: tuple[str | None, str | None]) -> TensorPlan:
    """Return the plan with its alignment keys; calibrations depend on the other layers, so their keys change too.

    Parameters
    ----------
    keys : as from `alignment_keys`
    """
    aligned = replace(tensor, alignment_key=keys[0], outputs_alignment_key=keys[1])
    if tensor.calibration_key is None and all(view.calibration_key is None for view in tensor.views):
        return aligned

    def calibrated(view: MatrixView | None) -> str | None:
        own = (tensor if view is None else view).calibration_key
        for one in decompositions(aligned, view) if own is not None else ():
            assert own is not None and one.alignment_key is not None
            own = calibration_key(own, one.alignment_key)
        return own

    views = tuple(replace(view, calibration_key=calibrated(view)) for view in tensor.views)
    return replace(aligned, calibration_key=calibrated(None), views=views)
