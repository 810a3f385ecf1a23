"""Keys: an object that exists under its key means that the same computation is done.

    spectrum key = H(decomposition, algorithm version, arithmetic, base, experts and weights, tensor)
    part key     = H(per tensor: spectrum keys or inputs, method, parameters, calibration, output dtype)

A model enters by its fingerprint and a tensor by its stored name, never by a place: the same weights elsewhere have the
same keys. Device, workers and memory limits are not part of a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..formats.digest import hash_bytes, hash_json
from ..formats.store_folders import ALIGNMENTS, PARTS, SPECTRA, SUMS
from .plan import LayerShard, OutputFile, RunSettings, SideFile, TensorPlan

# Bump when the bytes of a part change although no method did (rounding of the cast, order of the sums).
PART_VERSION = 1
# The same for sums of plain task vectors, which the mean of 1-D tensors is made of.
SUM_VERSION = 1


def spectrum_key(
    decomposition: Mapping[str, object],
    algorithm_version: int,
    arithmetic: str,
    inputs: str,
    matrix: str,
    *,
    incremental: bool = False,
    package: str | None = None,
) -> str:
    """Object key of one matrix' decomposition.

    Parameters
    ----------
    decomposition : what `SpectralMethod.decomposition` returns
    inputs : digest of the base's tensor, and each expert's tensor with its parameters in canonical order
    matrix : shape and, for a part of a tensor, which part
    incremental : its sums may have been added up in another order, so that it differs in the last bits
    package : name and version of the package that defines the method; None for a built-in one
    """
    content: list[object] = ["spectrum", dict(decomposition), algorithm_version, arithmetic, inputs, matrix]
    if incremental:
        content.append("incremental")
    if package is not None:
        content.append({"package": package})
    return _spectra(hash_json(content))


def calibration_key(spectrum: str, filtered: str) -> str:
    """Object key of the calibration's own decomposition.

    Parameters
    ----------
    spectrum : key of the method's decomposition
    filtered : digest of the method, its parameters and the calibration's algorithm version
    """
    return _spectra(hash_json(["calibration", spectrum, filtered]))


def alignment_key(spectra: Sequence[str]) -> str:
    """Object key of the table of the largest eigenvalues of these decompositions."""
    hashed = hash_json(["alignment", list(spectra)])
    return f"{ALIGNMENTS}{hashed}.json"


def sums_key(algorithm_version: int, arithmetic: str, base: str, matrix: str, members: Sequence[str]) -> str:
    """Object key of the sums of one matrix, or of one tensor of any shape, over a set of experts.

    Sums over other experts lie in the same folder. The name begins with the size of the set: who looks for the largest
    subset need not open the small ones.
    """
    shared = hash_json(["sums", algorithm_version, arithmetic, base, matrix])
    return f"{SUMS}{shared[:2]}/{shared}/{len(members):06d}-{hash_json(sorted(members))}.safetensors"


def _spectra(hashed: str) -> str:
    return f"{SPECTRA}{hashed[:2]}/{hashed}.arrow"  # two levels: some disks are slow with 100,000 files in a folder


def tensor_identity(
    tensor: TensorPlan, base: str | None, experts: Sequence[str], seed: int | None = None, algorithm_version: int = 1
) -> str:
    """Hash of everything that decides the bytes of one output tensor.

    `seed` and `algorithm_version` are given for direct methods: they may draw masks, seeded by the seed and by the
    output's name, and have no spectrum key that contains the version.
    """
    content: dict[str, Any] = {
        "action": tensor.action,
        "shape": tensor.shape,
        "out_dtype": tensor.out_dtype,
        "base": base,
        "method": tensor.method,
        "parameters": tensor.parameters,
        "calibration": tensor.calibration,
        "spectra": [tensor.spectrum_key, *(view.spectrum_key for view in tensor.views)],
    }
    if tensor.spectrum_key is None and not tensor.views:  # else the spectra's keys say which experts
        pairs = zip(experts, tensor.experts, strict=True)
        content["experts"] = [[name, expert.parameters, expert.is_base] for name, expert in pairs]
    if seed is not None:
        content |= {"name": tensor.name, "seed": seed}
    if tensor.method_package is not None:
        content["package"] = tensor.method_package
    if algorithm_version != 1:
        content["algorithm_version"] = algorithm_version
    if tensor.sums_key is not None:
        content["incremental"] = True  # as for `spectrum_key`
    return hash_json(content)


def part_key(identities: Sequence[tuple[str, str]], settings: RunSettings) -> str:
    """Object key of one shard's part.

    Parameters
    ----------
    identities : (output name, `tensor_identity`) in the order of the part
    """
    content: list[object] = ["part", PART_VERSION, settings.arithmetic, identities]
    if settings.allow_nonfinite:
        content.append("allow_nonfinite")  # a strict run must not take a part in which NaN was passed over
    if settings.allow_tf32:
        content.append("tf32")
    return f"{PARTS}{hash_json(content)}.safetensors"


def run_key(
    recipe: Mapping[str, object],
    shards: Sequence[LayerShard],
    files: Sequence[OutputFile],
    side_files: Sequence[SideFile],
) -> str:
    """Hash of everything that decides the output's bytes."""
    sides = [[side.name, hash_bytes(side.content) if side.content is not None else None] for side in side_files]
    layout = [[file.name, file.shards] for file in files]
    return hash_json(["run", dict(recipe), [shard.part_key for shard in shards], layout, sides])
