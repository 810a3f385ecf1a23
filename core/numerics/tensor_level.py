"""merge_task_vectors: merge the task vectors of one weight in memory, for notebooks, tests and other programs.

Shapes: M = out features (D1), K = in features (D2), N = experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast, get_args, overload

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, NonFiniteError, RecipeError, ShapeError
from .apply_filter import apply_factors
from .cast import count_nonfinite, round_once
from .lazy_torch import torch
from .linear_algebra import TOO_LARGE, overflow_refused
from .method import AnyMethod, DirectMethod, ExpertParameters, MethodParameters, Side, SpectralMethod
from .noise.storage_noise import NoiseHandling, StorageNoise, is_noise, rounds
from .noise.storage_noise import storage_noise as storage_noise_of
from .parameters import parse_parameters
from .registry import get_method
from .svd.side_deltas import FilteredSide, add_sides, svc_of_sides
from .svd.svc import Count, apply_svc, svc_factors
from .task_vectors import InMemoryTaskVectors, LowRank, may_overflow, noises_of, to_dense

T = TypeVar("T")
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]

_CALIBRATIONS = {"svc": ("alpha", "count")}


@dataclass(frozen=True, slots=True)
class _Svc:
    """An SVC calibration; `alpha` None: the default after the method."""

    alpha: float | None
    count: Count


@overload
def merge_task_vectors(
    task_vectors: Iterable[torch.Tensor | LowRank],
    method: str = "swudi",
    *,
    calibration: Mapping[str, Mapping[str, Any]] | None = None,
    base: torch.Tensor | None = None,
    seed: int = 0,
    stored_as: torch.dtype | Sequence[torch.dtype | None] | None = None,
    storage_noise: str = "cut",
    **parameters: Any,
) -> torch.Tensor: ...
@overload
def merge_task_vectors(
    task_vectors: Iterable[FloatArray],
    method: str = "swudi",
    *,
    calibration: Mapping[str, Mapping[str, Any]] | None = None,
    base: FloatArray | None = None,
    seed: int = 0,
    stored_as: torch.dtype | Sequence[torch.dtype | None] | None = None,
    storage_noise: str = "cut",
    **parameters: Any,
) -> FloatArray: ...
def merge_task_vectors(
    task_vectors: Iterable[torch.Tensor | LowRank | FloatArray],
    method: str = "swudi",
    *,
    calibration: Mapping[str, Mapping[str, Any]] | None = None,
    base: torch.Tensor | FloatArray | None = None,
    seed: int = 0,
    stored_as: torch.dtype | Sequence[torch.dtype | None] | None = None,
    storage_noise: str = "cut",
    **parameters: Any,
) -> torch.Tensor | FloatArray:
    """Merge the task vectors of one weight; the base weight plus the result is the merged weight.

    Cost: that of the method, see docs/methods.md; all task vectors are in memory.

    Parameters
    ----------
    task_vectors : iterable of Tensor (M, K), LowRank, or numpy array (M, K)
        Expert minus base, one per expert, all on one device. May be a generator.
    method : str
        Name or alias as in `eigenmerge methods`.
    calibration : mapping, optional
        {"svc": {"alpha": ...}} calibrates the scaled result of the method; {"svc": {}} uses the default alpha.
    base : Tensor or numpy array (M, K), optional
        The base weight, for methods on whole weights (slerp, linear, model_stock, ...). By default zero.
    seed : int
        Seed of methods that draw at random.
    stored_as : dtype, or one for each expert, optional
        In which base + task vector is stored (torch.bfloat16, float16, float8_e4m3fn, float8_e5m2 without scales;
        None: exact), as a recipe knows it from the files. Directions that are the rounding of this storage are then no
        signal (docs/storage-noise.md). Needs `base`.
    storage_noise : "cut" | "shrink" | "ignore"
        As in a recipe; without `stored_as` it has no effect.
    **parameters
        Parameters of the method, named as in a recipe. Per-expert parameters (weight, density) are one value for all
        experts or a list of N.

    Returns
    -------
    Tensor, (M, K), in the dtype of the inputs; a numpy array where these are arrays. Computed in float64 for float64
    inputs and where the filter needs it (`SpectralMethod.needs_float64`), else in float32, and cast once

    Raises
    ------
    RecipeError : unknown method, parameter or calibration (suggests the nearest); a value out of range; too few or too
        many experts; `stored_as` without `base`
    ShapeError : no task vector, different shapes, or a spectral method on tensors that are not matrices
    CheckpointError : a dtype that is not floating point, or tensors on several devices
    NonFiniteError : NaN or Inf in a task vector

    Examples
    --------
    >>> merge_task_vectors([v1, v2, v3], method="swudi", exp_time=300, rank_ratio=0.85)  # doctest: +SKIP
    """
    chosen = get_method(method)
    found = list(task_vectors)
    given = [_to_tensor(vector) for vector in found]
    own_base = None if base is None else _to_tensor(base)
    returns_array = bool(found) and all(isinstance(vector, np.ndarray) for vector in found)
    _check_count(chosen, len(given))
    result_dtype = _find_common_dtype(given)
    settings, experts = parse_parameters(chosen, parameters, len(given))
    precise = isinstance(chosen, SpectralMethod) and chosen.needs_float64(settings)
    arithmetic = torch.float64 if precise or result_dtype == torch.float64 else torch.float32
    svc = _parse_calibration(calibration)
    vectors = [vector.to(_device_of(vector), arithmetic) for vector in given]
    noises = _find_noises(vectors, own_base, stored_as, storage_noise)
    stacked = InMemoryTaskVectors(vectors, noises)
    for index, vector in enumerate(vectors):
        _check_finite(index, vector)
        if (isinstance(chosen, SpectralMethod) or svc is not None) and may_overflow(vector, len(vectors)):
            raise NonFiniteError(f"task vector {index}: {TOO_LARGE}")
    shape = tuple(vectors[0].shape)
    if own_base is not None and tuple(own_base.shape) != shape:
        raise ShapeError(f"base has shape {tuple(own_base.shape)}, task vector 0 has {shape}")
    if isinstance(chosen, SpectralMethod) and len(shape) != 2:
        raise ShapeError(f"{chosen.name} merges matrices; task vector 0 has shape {shape}, expected (out, in)")
    if svc is not None and len(shape) != 2:
        raise ShapeError(f"calibration svc: task vector 0 has shape {shape}, expected a matrix (out, in)")

    with torch.no_grad(), overflow_refused(chosen.name):
        if 0 in shape:
            empty = torch.zeros(shape, dtype=result_dtype, device=_device_of(vectors[0]))
            return empty.numpy() if returns_array else empty
        if isinstance(chosen, SpectralMethod):
            merged = _merge_spectral(chosen, settings, experts, stacked, svc)
        else:
            merged = _merge_direct(chosen, settings, experts, stacked, own_base, seed, svc)
        result = round_once(merged, result_dtype)
        if count_nonfinite(result):
            raise NonFiniteError(f"{chosen.name}: the merged values do not fit {result_dtype}, or {TOO_LARGE}")
        return result.numpy() if returns_array else result


def _to_tensor(vector: T | FloatArray) -> T | torch.Tensor:
    """Return a tensor of a numpy array, whatever its byte order and strides; anything else unchanged."""
    if not isinstance(vector, np.ndarray):
        return vector
    array = cast("npt.NDArray[Any]", vector)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CheckpointError(
            f"task vectors: found an array of dtype {array.dtype}; expected float16, float32 or float64"
        )
    return torch.as_tensor(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _find_noises(
    vectors: list[torch.Tensor | LowRank],
    base: torch.Tensor | None,
    stored_as: torch.dtype | Sequence[torch.dtype | None] | None,
    handling: str,
) -> list[StorageNoise | None] | None:
    """Return the noise of each task vector, and set in place those that are nothing else to 0; None without dtypes.

    Raises
    ------
    RecipeError : `stored_as` without base, with another number of dtypes, or with one whose rounding is not known
    """
    if handling not in get_args(NoiseHandling):
        expected = ", ".join(get_args(NoiseHandling))
        raise RecipeError(f"storage_noise is {handling!r}; expected one of {expected}")
    if stored_as is None:
        return None
    if base is None:
        raise RecipeError("stored_as is given without base; the rounding of an expert follows from base + task vector")
    dtypes = [stored_as] * len(vectors) if isinstance(stored_as, torch.dtype) else list(stored_as)
    if len(dtypes) != len(vectors):
        raise RecipeError(f"stored_as has {len(dtypes)} dtypes, expected one for each of {len(vectors)} task vectors")
    known = (torch.float64, torch.float32)
    for dtype in dtypes:
        if dtype is not None and dtype not in known and not rounds(dtype):
            raise RecipeError(f"stored_as is {dtype}, expected a floating point dtype whose rounding is known")
    found: list[StorageNoise | None] = []
    for index, (vector, dtype) in enumerate(zip(vectors, dtypes, strict=True)):
        if handling == "ignore" or dtype is None or not rounds(dtype) or isinstance(vector, LowRank):
            found.append(None)
            continue
        if tuple(base.shape) != tuple(vector.shape):
            raise ShapeError(f"base has shape {tuple(base.shape)}, task vector {index} has {tuple(vector.shape)}")
        matrix = vector.reshape(len(vector), -1) if vector.ndim else vector.reshape(1, 1)
        values = base.to(vector.device, vector.dtype).reshape(matrix.shape) + matrix
        noise = storage_noise_of(values, matrix, dtype, shrinks=handling == "shrink")
        if is_noise(matrix, noise):
            vectors[index] = torch.zeros_like(vector)
        found.append(noise)
    return found


def _merge_spectral(
    method: SpectralMethod[Any, Any],
    settings: MethodParameters,
    experts: Sequence[MethodParameters],
    stacked: InMemoryTaskVectors,
    svc: _Svc | None,
) -> torch.Tensor:
    """Return the merged delta; with SVC calibrated on the directions of the method, as the pipeline does."""
    weights = [expert.weight for expert in experts if isinstance(expert, ExpertParameters)]
    weighted = [_multiply(vector, weight) for vector, weight in zip(stacked, weights, strict=True) if weight != 0]
    if not weighted:
        return torch.zeros_like(to_dense(next(iter(stacked))))
    known = zip(noises_of(stacked), weights, strict=True)
    noises = [noise.times(weight) if noise is not None else None for noise, weight in known if weight != 0]
    vectors = InMemoryTaskVectors(weighted, noises)
    sides = method.sides(settings, vectors.shape)
    filtered = (_filter_side(method, settings, side, vectors) for side in sides)
    if svc is None:
        return to_dense(add_sides(sides, filtered, vectors.shape))
    spectrum = svc_of_sides(sides, filtered, vectors.shape, vectors)
    return apply_factors(spectrum, svc_factors(spectrum, svc.alpha, svc.count, method.name))


def _filter_side(
    method: SpectralMethod[Any, Any], settings: MethodParameters, side: Side, vectors: InMemoryTaskVectors
) -> FilteredSide:
    spectrum = method.decompose(side.task_vectors_of(vectors), settings)
    return side, spectrum, method.factors(spectrum, settings)


def _merge_direct(
    method: DirectMethod[Any, Any],
    settings: MethodParameters,
    experts: Sequence[MethodParameters],
    stacked: InMemoryTaskVectors,
    base: torch.Tensor | None,
    seed: int,
    svc: _Svc | None,
) -> torch.Tensor:
    """Return the merged delta; with SVC calibrated on the task vectors without their weights, as the pipeline does."""
    if svc is None:
        inputs = _InMemoryInputs(stacked, base, seed)
        return method.merge(inputs, settings, experts) - inputs.base
    # in float64: base + delta - base would have the rounding of the base, which SVC takes for directions
    precise = [vector.to(_device_of(vector), torch.float64) for vector in stacked]
    inputs = _InMemoryInputs(InMemoryTaskVectors(precise), base, seed)
    delta = (method.merge(inputs, settings, experts) - inputs.base).to(_dtype_of(next(iter(stacked))))
    is_counted = [getattr(expert, "weight", 1.0) != 0 for expert in experts]
    counted = [vector for vector, counts in zip(stacked, is_counted, strict=True) if counts]
    noises = [noise for noise, counts in zip(noises_of(stacked), is_counted, strict=True) if counts]
    return apply_svc(delta, InMemoryTaskVectors(counted, noises), svc.alpha, svc.count)


class _InMemoryInputs:
    """TensorInputs with experts base + task vector."""

    name = "tensor"

    def __init__(self, stacked: InMemoryTaskVectors, base: torch.Tensor | None, seed: int) -> None:
        self._vectors = [to_dense(vector) for vector in stacked]
        first = self._vectors[0]
        self._base = torch.zeros_like(first) if base is None else base.to(first.device, first.dtype)
        self.seed = seed

    @property
    def base(self) -> torch.Tensor:
        return self._base

    @property
    def num_experts(self) -> int:
        return len(self._vectors)

    def experts(self) -> Iterator[torch.Tensor]:
        return (self._base + vector for vector in self._vectors)

    def task_vectors(self) -> Iterator[torch.Tensor]:
        # Copies: a method may change its inputs in place.
        return (vector.clone() for vector in self._vectors)

    def is_base(self, index: int) -> bool:
        return False


def _check_count(method: AnyMethod, found: int) -> None:
    if found == 0:
        raise ShapeError("no task vectors given; expected at least one expert")
    most = method.max_experts
    if found < method.min_experts or (most is not None and found > most):
        expected = f"at least {method.min_experts}" if most is None else f"{method.min_experts} to {most}"
        raise RecipeError(f"{method.name} merges {expected} experts, found {found}")


def _find_common_dtype(vectors: list[torch.Tensor | LowRank]) -> torch.dtype:
    dtype = _dtype_of(vectors[0])
    for index, vector in enumerate(vectors):
        if not _dtype_of(vector).is_floating_point:
            raise CheckpointError(f"task vector {index} is {_dtype_of(vector)}; expected a floating point dtype")
        if _device_of(vector) != _device_of(vectors[0]):
            raise CheckpointError(
                f"task vector {index} is on {_device_of(vector)}, task vector 0 on {_device_of(vectors[0])}; use one"
                " device"
            )
        if _dtype_of(vector) != dtype:
            dtype = torch.promote_types(dtype, _dtype_of(vector))
    return dtype


def _check_finite(index: int, vector: torch.Tensor | LowRank) -> None:
    tensors = (vector.left, vector.right) if isinstance(vector, LowRank) else (vector,)
    bad = sum(map(count_nonfinite, tensors))
    if bad:
        raise NonFiniteError(f"task vector {index} holds {bad} NaN or Inf values; expected finite numbers")


def _parse_calibration(calibration: Mapping[str, Mapping[str, Any]] | None) -> _Svc | None:
    if not calibration:
        return None
    for name, settings in calibration.items():
        if name not in _CALIBRATIONS:
            raise RecipeError(f"unknown calibration {name!r}; known: {', '.join(_CALIBRATIONS)}")
        for key in settings or {}:
            if key not in _CALIBRATIONS[name]:
                raise RecipeError(
                    f"calibration {name} has no parameter {key!r}; it takes {', '.join(_CALIBRATIONS[name])}"
                )
    alpha = (calibration["svc"] or {}).get("alpha")
    if alpha is not None and not (isinstance(alpha, (int, float)) and alpha > 0):
        raise RecipeError(f"calibration svc: alpha is {alpha!r}; expected a number above 0")
    count = (calibration["svc"] or {}).get("count", "changing")
    if count not in ("changing", "all"):
        raise RecipeError(f"calibration svc: count is {count!r}; expected changing or all")
    return _Svc(alpha, count)


def _multiply(vector: torch.Tensor | LowRank, weight: float) -> torch.Tensor | LowRank:
    if weight == 1.0:
        return vector
    return LowRank(vector.left * weight, vector.right) if isinstance(vector, LowRank) else vector * weight


def _dtype_of(vector: torch.Tensor | LowRank) -> torch.dtype:
    return vector.left.dtype if isinstance(vector, LowRank) else vector.dtype


def _device_of(vector: torch.Tensor | LowRank) -> torch.device:
    return vector.left.device if isinstance(vector, LowRank) else vector.device
