"""Read and validate `eigenmerge_manifest.json`, which may have been changed since it was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import CheckpointError, CorruptObjectError, ObjectNotFoundError
from ..formats.bounded_json import check_json_size, parse_json_object
from ..formats.file_names import MANIFEST_NAME
from ..storage.backends.near_paths import near_path
from ..storage.store import Store
from .manifest import FORMAT_VERSION

LONGEST_MANIFEST_BYTES = 512 * 2**20  # about 500 bytes per tensor
MOST_MANIFEST_VALUES = 20_000_000
_SHA256 = r"^[0-9a-f]{64}$"


class _Part(BaseModel):
    # Unknown keys are ignored, because a later version may add keys. In recipes they are errors.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ManifestFile(_Part):
    """One weight file."""

    name: str = Field(description="below the checkpoint's folder")
    num_bytes: int = Field(ge=0, description="of the whole file")
    sha256: str | None = Field(pattern=_SHA256, description="of the whole file; null where a store copied it")


class ManifestModel(_Part):
    """The base or one expert."""

    name: str = Field(description="as written in the recipe")
    fingerprint: str = Field(description="of its weights when they were merged")
    kind: str = Field(default="full", description="full, adapter or full+adapter")
    num_tensors: int | None = Field(default=None, description="that it stores")
    share_placed: float | None = Field(default=None, description="of its parameters that have a place in the output")


class ManifestMeasures(_Part):
    """What was measured of a tensor's experts, in the order in which they were added."""

    delta: float = Field(description="norm of the merged delta")
    norms: list[float] = Field(description="of the weighted task vectors")
    before: list[float] | None = Field(
        default=None, description="interference, WUDI's loss of each expert, at the base model; estimated"
    )
    after: list[float] | None = Field(default=None, description="the same at the merged delta; estimated")
    cosines: list[float] = Field(description="of each task vector with the merged delta; estimated")
    with_others: list[float] = Field(description="cosine of each task vector with the sum of the others; estimated")
    alignment: list[float] | None = Field(
        default=None, description="share of each norm in the kept directions over the inputs; estimated"
    )


class ManifestTensor(_Part):
    """One merged tensor."""

    name: str = Field(description="in the model")
    shape: list[int] = Field(description="in the model")
    dtype: str = Field(description="as stored, safetensors' name")
    action: str = Field(description="merge, mean or copy")
    sha256: str = Field(
        pattern=_SHA256, description="of its bytes; if stored as several tensors, of their concatenation"
    )
    stored_as: list[str] | None = Field(default=None, description="names in the file, where they differ from `name`")
    reason: str = Field(default="", description="why it was treated so")
    method: str | None = Field(default=None, description="that merged it")
    method_package: str | None = Field(default=None, description="that defines the method; null: built-in")
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any], description="of the method, for this tensor")
    weights: list[float] | None = Field(
        default=None, description="of the experts, in the order in which they were added"
    )
    expert_order: int | None = Field(default=None, description="index into `expert_orders`")
    rank: int | None = Field(default=None, description="directions that were kept; of several matrices their sum")
    energy: float | None = Field(default=None, description="share of the sum of the eigenvalues in these directions")
    spectrum: str | None = Field(default=None, description="key of the decomposition in the store; of the first matrix")
    decomposed_over: list[str] | None = Field(
        default=None, description="outputs, or inputs and outputs, where some of its matrices are not over inputs alone"
    )
    outputs_rank: int | None = Field(
        default=None, description="as `rank`, of the decompositions over outputs of matrices that are over both sides"
    )
    outputs_energy: float | None = Field(default=None, description="as `energy`, of the same")
    outputs_spectrum: str | None = Field(default=None, description="as `spectrum`, of the same")
    storage_noise: float | None = Field(
        default=None, description="level of the rounding of storage, relative to the largest singular value"
    )
    svc_change: float | None = Field(default=None, description="of the merged delta by SVC, relative")
    measures: ManifestMeasures | None = Field(default=None, description="null where the experts were not measured")
    orientation: str | None = Field(default=None, description="how the matrix is stored: out_in or in_out")
    matrix_shape: list[int] | None = Field(default=None, description="in which it was decomposed, if not its own")
    num_matrices: int | None = Field(default=None, description="into which it was divided")
    arithmetic: str | None = Field(default=None, description="where it differs from that of the run")
    truncation_error: float | None = Field(default=None, description="of an adapter's rank, relative")
    error: float | None = Field(default=None, description="of the stored form, relative")
    notes: list[str] = Field(default_factory=list[str], description="what the merge noticed")

    @property
    def stored_names(self) -> list[str]:
        """Names in the file."""
        return [self.name] if self.stored_as is None else self.stored_as


class Manifest(_Part):
    """The parts of a manifest that verification, `inspect`, `explain` and `compare` need."""

    format: int = Field(description="of the manifest")
    eigenmerge: str = Field(description="version that merged")
    run_key: str = Field(description="of the run")
    recipe: dict[str, Any] = Field(description="without secrets")
    base: ManifestModel | None = Field(description="null where the recipe has none")
    experts: list[ManifestModel] = Field(description="in the recipe's order")
    expert_orders: list[list[int]] = Field(
        default_factory=list[list[int]],
        description="indices of experts in the orders in which tensors add them; an earlier version wrote none",
    )
    arithmetic: str = Field(default="float32", description="of the run")
    expert_overlap: list[list[float | None]] | None = Field(
        default=None, description="cosines of the experts' task vectors, over all measured tensors; estimated"
    )
    warnings: list[str] = Field(default_factory=list[str], description="of the plan")
    files: list[ManifestFile] = Field(description="weight files")
    side_files: dict[str, str] = Field(description="name to sha256")
    tensors: list[ManifestTensor] = Field(description="in the order of the files")


def read_manifest(store: Store) -> Manifest:
    """Return the manifest of the checkpoint in `store`.

    Raises
    ------
    CheckpointError : the manifest is missing or damaged
    """
    name = store.display(MANIFEST_NAME)
    try:
        data = store.read(MANIFEST_NAME, LONGEST_MANIFEST_BYTES)
    except ObjectNotFoundError:
        place = store.display("")
        if store.is_local and not Path(place).exists():
            raise CheckpointError(f"{place}: does not exist{near_path(place)}") from None
        raise CheckpointError(
            f"{place}: has no {MANIFEST_NAME}; expected a finished checkpoint of eigenmerge"
        ) from None
    except CorruptObjectError as error:
        raise CheckpointError(str(error)) from None
    return parse_manifest(data, name)


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Return a manifest from its content.

    Parameters
    ----------
    name : for messages

    Raises
    ------
    CheckpointError : it is damaged
    """
    return _validated(parse_json_object(data, name, LONGEST_MANIFEST_BYTES, most_values=MOST_MANIFEST_VALUES), name)


def manifest_of(content: Mapping[str, object], data: bytes, name: str) -> Manifest:
    """Return what `parse_manifest` makes of `data`, the JSON of `content`, which has just been written.

    Raises
    ------
    CheckpointError : as `parse_manifest`: more than a reader accepts
    """
    check_json_size(data, name, LONGEST_MANIFEST_BYTES, MOST_MANIFEST_VALUES)
    return _validated(content, name)


def _validated(content: Mapping[str, object], name: str) -> Manifest:
    if content.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{name}: format is {content.get('format')!r}, this version reads {FORMAT_VERSION}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{name}: is damaged: {place[:200]}: {first['msg']}") from None
