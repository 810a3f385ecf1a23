"""Keys of stored objects: an object exists under its key if and only if the same computation is done.

    spectrum key = H(decomposition, algorithm version, arithmetic, base, experts and weights, tensor)
    part key     = H(per tensor: spectrum keys or inputs, method, parameters, calibration, output dtype)

Keys contain the fingerprints of models and the stored names of tensors, not locations: a copy of the weights elsewhere
has the same keys. Device, workers and memory limits are not part of a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..formats.digest import hash_bytes, hash_json
from ..formats.store_folders import ALIGNMENTS, MEASURES, PARTS, SPECTRA, SUMS
from .plan import (
    Decomposition,
    ExpertTensor,
    LayerShard,
    OutputFile,
    RunSettings,
    SideFile,
    TensorPlan,
    decompositions,
)

# Increase when the bytes of a part change although no method changes (rounding of the cast, order of the sums).
PART_VERSION = 1
# The same for matrix products, by which spectra, kept sums and parts are computed. Since 2, oneDNN multiplies on some
# processors, and experts are not divided by their norms before the product for D.
_PRODUCT_VERSION = 2
# The same for sums of plain task vectors, from which means of 1-D tensors are computed.
SUM_VERSION = 1
# The same for the cast of float64 to shorter dtypes. 1 rounded twice, through float32.
_ROUNDING_VERSION = 2
# The same for the noise of storage that decompositions take from the dtypes of the experts.
_NOISE_VERSION = 1
# Keys of a recipe that say what the store keeps and how models are identified, not what is computed.
_NOT_IN_RUN_KEY = frozenset({"spectra", "spectra_dtype", "fingerprint"})


def spectrum_key(
    decomposition: Mapping[str, object],
    algorithm_version: int,
    arithmetic: str,
    inputs: str,
    matrix: str,
    *,
    incremental: bool = False,
    package: str | None = None,
    vectors: str | None = None,
    tf32: bool = False,
) -> str:
    """Return the object key of one matrix's decomposition.

    Parameters
    ----------
    decomposition : the result of `SpectralMethod.decomposition`
    inputs : hash of the base's tensor and of each expert's tensor with its parameters, in canonical order
    matrix : shape and, for a part of a tensor, its cut
    incremental : the sums may have been added in another order, so the last bits may differ
    package : name and version of the package that defines the method; None for a built-in one
    vectors : `RunSettings.rounded_vectors`
    tf32 : `RunSettings.uses_tf32`
    """
    content: list[object] = ["spectrum", dict(decomposition), algorithm_version, arithmetic, inputs, matrix]
    content.append({"products": _PRODUCT_VERSION})
    if incremental:
        content.append("incremental")
    if package is not None:
        content.append({"package": package})
    if vectors is not None:
        content.append({"vectors": vectors})
    if tf32:
        content.append("tf32")
    return _spectrum_object_key(hash_json(content))


def top_spectrum_key(whole: str, version: int) -> str:
    """Return the object key of a spectrum with vectors of its top directions only.

    Parameters
    ----------
    whole : key of the whole spectrum
    version : of the rule that says which directions are kept
    """
    return _spectrum_object_key(hash_json(["top", version, whole]))


def top_values_key(top: str) -> str:
    """Return the object key of all eigenvalues and statistics that belong to a `top_spectrum_key`."""
    return _spectrum_object_key(hash_json(["values", top]))


def probes_key(spectrum_key: str) -> str:
    """Return the key of the probes of the experts of a spectrum."""
    return MEASURES + spectrum_key.removeprefix(SPECTRA).removesuffix(".arrow") + ".safetensors"


def probed_key(planned: Sequence[Decomposition]) -> str | None:
    """Return the key of the spectrum beside which the probes of one matrix are kept.

    None where the experts are not measured: without a spectrum, and where kept sums replace experts.
    """
    if not planned or any(one.sums_key is not None for one in planned):
        return None
    return planned[0].whole_key or planned[0].spectrum_key


def probes_keys(tensor: TensorPlan) -> Iterator[str]:
    """Yield the keys of all probes that a merge of the tensor may read or write."""
    for view in tensor.views or (None,):
        key = probed_key(decompositions(tensor, view))
        if key is not None:
            yield probes_key(key)


def with_noise(identities: Sequence[str], experts: Sequence[ExpertTensor]) -> list[str]:
    """Return the identities of the experts for a decomposition, which depends on what is done with storage noise."""
    pairs = zip(identities, experts, strict=True)
    return [
        identity if expert.noise is None else f"{identity}#noise-{expert.noise}-{_NOISE_VERSION}"
        for identity, expert in pairs
    ]


def calibration_key(spectrum: str, filter_hash: str) -> str:
    """Return the object key of a calibration's decomposition.

    Parameters
    ----------
    spectrum : key of the method's decomposition
    filter_hash : hash of the method, its parameters and the calibration's algorithm version, or an alignment key
    """
    return _spectrum_object_key(hash_json(["calibration", spectrum, filter_hash]))


def alignment_key(spectra: Sequence[str]) -> str:
    """Return the object key of the table of the largest eigenvalues of decompositions, given by their keys."""
    hashed = hash_json(["alignment", list(spectra)])
    return f"{ALIGNMENTS}{hashed}.json"


def sums_key(
    algorithm_version: int, arithmetic: str, base: str, matrix: str, members: Sequence[str], *, tf32: bool = False
) -> str:
    """Return the object key of sums over experts, for one matrix or one tensor of any shape.

    Sums over other sets of experts are in the same folder. The name begins with the size of the set, so the largest
    subset can be found without opening smaller ones.

    Parameters
    ----------
    base : identifies the base's tensor
    matrix : shape and, for a part of a tensor, its cut
    members : identify each expert's tensor and its weight, in any order
    tf32 : `RunSettings.uses_tf32`
    """
    content: list[object] = ["sums", algorithm_version, arithmetic, base, matrix, {"products": _PRODUCT_VERSION}]
    shared = hash_json([*content, "tf32"] if tf32 else content)
    return f"{SUMS}{shared[:2]}/{shared}/{len(members):06d}-{hash_json(sorted(members))}.safetensors"


def _spectrum_object_key(hashed: str) -> str:
    # two levels, because some file systems are slow with 100,000 files in a folder
    return f"{SPECTRA}{hashed[:2]}/{hashed}.arrow"


def tensor_identity(
    tensor: TensorPlan, base: str | None, experts: Sequence[str], seed: int | None = None, algorithm_version: int = 1
) -> str:
    """Return the hash of everything that determines the bytes of one output tensor.

    Parameters
    ----------
    base : identifies the base's tensor
    experts : identify each expert's tensor, in the order of `tensor.experts`
    seed : of direct methods, which may draw masks seeded by it and by the tensor's name
    algorithm_version : of direct methods; spectrum keys contain that of spectral methods
    """
    content: dict[str, Any] = {
        "action": tensor.action,
        "shape": tensor.shape,
        "out_dtype": tensor.out_dtype,
        "base": base,
        "method": tensor.method,
        "parameters": tensor.parameters,
        "calibration": tensor.calibration,
        "spectra": [tensor.spectrum_key, *(view.spectrum_key for view in tensor.views), *_outputs_keys(tensor)],
    }
    if tensor.spectrum_key is None and not tensor.views:  # otherwise the spectrum keys identify the experts
        pairs = zip(experts, tensor.experts, strict=True)
        content["experts"] = [[name, expert.parameters, expert.is_base] for name, expert in pairs]
    if seed is not None:
        content |= {"name": tensor.name, "seed": seed}
    if tensor.arithmetic is not None:
        content["arithmetic"] = tensor.arithmetic
    if tensor.method_package is not None:
        content["package"] = tensor.method_package
    if algorithm_version != 1:
        content["algorithm_version"] = algorithm_version
    if _rounds_float64(tensor):
        content["rounding"] = _ROUNDING_VERSION
    if tensor.sums_key is not None:
        content["incremental"] = True  # as for `spectrum_key`
    return hash_json(content)


def _outputs_keys(tensor: TensorPlan) -> list[str]:
    """Return the keys of second decompositions, over outputs."""
    return [matrix.outputs.spectrum_key for matrix in (tensor, *tensor.views) if matrix.outputs is not None]


def _rounds_float64(tensor: TensorPlan) -> bool:
    """Return whether a float64 result is cast to a dtype of less than 32 bits, without `RunSettings.arithmetic`."""
    is_float64 = tensor.arithmetic == "float64" or (tensor.base is not None and tensor.base.dtype == "F64")
    return is_float64 and tensor.out_dtype not in ("F64", "F32")


def part_key(identities: Sequence[tuple[str, str]], settings: RunSettings) -> str:
    """Return the object key of one shard's part.

    Parameters
    ----------
    identities : (output name, `tensor_identity`) in the order of the part
    """
    content: list[object] = ["part", PART_VERSION, settings.arithmetic, identities, {"products": _PRODUCT_VERSION}]
    if settings.arithmetic == "float64":
        content.append({"rounding": _ROUNDING_VERSION})
    if settings.allow_nonfinite:
        content.append("allow_nonfinite")  # a run without it must not reuse parts in which NaN was skipped
    if settings.uses_tf32:
        content.append("tf32")
    return f"{PARTS}{hash_json(content)}.safetensors"


def run_key(
    recipe: Mapping[str, object],
    shards: Sequence[LayerShard],
    files: Sequence[OutputFile],
    side_files: Sequence[SideFile],
) -> str:
    """Return the hash of everything that determines the output's bytes.

    Parameters
    ----------
    recipe : without defaults; what of `spectra`, `spectra_dtype` and `fingerprint` changes numbers is in the part keys
    """
    sides = [[side.name, hash_bytes(side.content) if side.content is not None else None] for side in side_files]
    layout = [[file.name, file.shards] for file in files]
    content = {name: value for name, value in recipe.items() if name not in _NOT_IN_RUN_KEY}
    return hash_json(["run", content, [shard.part_key for shard in shards], layout, sides])
