"""List an input model without reading its weights: tensors with their locations, config, side files, fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from ...errors import CheckpointError, CorruptObjectError, ObjectNotFoundError
from ...formats.bounded_json import LONGEST_CONFIG_BYTES
from ...formats.file_names import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, CONFIG_NAME, INDEX_NAME
from ...formats.redaction import redact
from ...formats.safetensors_header import SafetensorsHeader
from ...listing import AdapterListing, ModelListing, TensorSource
from ..object_header import read_header
from .fingerprint import (
    FingerprintKind,
    fingerprint_adapted_model,
    fingerprint_adapter,
    fingerprint_file,
    fingerprint_model,
)
from .float8_scales import pair_scales
from .folder import CheckpointFolder, NoModelError, choose_weights, open_folder
from .references import ParsedReference, locate_model, parse_reference

Result = TypeVar("Result")

_PARALLEL_FILES = 16


def list_model(
    reference: str, storage_options: Mapping[str, object] | None = None, *, fingerprint: FingerprintKind = "stat"
) -> ModelListing:
    """List a model from its headers.

    Cost: one listing of the directory and one read per file (two if a header is longer than 64 KiB), files in
    parallel; all weights for `fingerprint="content"`.

    Parameters
    ----------
    reference : str
        A directory, a .safetensors file, a URL that fsspec can open, or a Hub id; a full model or a PEFT adapter.
        `hub_id@revision` selects a revision, `model+adapter` adds an adapter.
    storage_options : mapping, optional
        As for `Store`
    fingerprint : "stat" | "content"
        Hash name, header, size and etag (locally the modification time) of the files, or their bytes

    Raises
    ------
    CheckpointError : no such model; pickled weights; a damaged header, index or config
    StoreError : the store refused, or failed after all retries
    """
    alternatives = parse_reference(reference)
    for number, parsed in enumerate(alternatives, 1):
        try:
            return _list_reference(reference, parsed, storage_options, fingerprint)
        except (NoModelError, ObjectNotFoundError) as error:
            if number == len(alternatives):
                raise CheckpointError(str(error)) from None
    raise AssertionError("parse_reference returned no alternative")


def _list_reference(
    reference: str, parsed: ParsedReference, options: Mapping[str, object] | None, kind: FingerprintKind
) -> ModelListing:
    model = _list_location(locate_model(parsed.model), options, kind)
    if parsed.adapter is None:
        return replace(model, name=redact(reference))
    if model.kind != "full":
        raise CheckpointError(f"{redact(reference)!r}: {model.uri} is an adapter; expected a full model before '+'")
    adapter = _list_location(locate_model(parsed.adapter), options, kind).adapter
    if adapter is None:
        raise CheckpointError(
            f"{redact(reference)!r}: {redact(parsed.adapter)} is not an adapter; expected a directory with"
            f" {ADAPTER_CONFIG_NAME} and {ADAPTER_WEIGHTS_NAME}"
        )
    return replace(
        model,
        name=redact(reference),
        kind="full+adapter",
        adapter=adapter,
        fingerprint=fingerprint_adapted_model(model.fingerprint, adapter.fingerprint),
        num_bytes=model.num_bytes + adapter.num_bytes,
    )


def _list_location(uri: str, options: Mapping[str, object] | None, kind: FingerprintKind) -> ModelListing:
    folder = open_folder(uri, options)
    names, weight_map = choose_weights(folder)
    headers = _map_in_parallel(lambda name: _read_header(folder, name), names)
    tensors = _collect_tensors(folder, headers, weight_map)
    fingerprint = fingerprint_model(
        _map_in_parallel(lambda name: fingerprint_file(folder.store, folder.files[name], headers[name], kind), names)
    )
    num_bytes = sum(source.num_bytes for source in tensors.values())
    is_adapter = names == [ADAPTER_WEIGHTS_NAME] and ADAPTER_CONFIG_NAME in folder.files
    adapter = None
    if is_adapter:
        adapter_config = folder.read_json(ADAPTER_CONFIG_NAME, LONGEST_CONFIG_BYTES)
        fingerprint = fingerprint_adapter(fingerprint, adapter_config)
        adapter = AdapterListing(folder.uri, adapter_config, tensors, fingerprint, num_bytes)
    return ModelListing(
        name=redact(uri),
        uri=folder.uri,
        kind="adapter" if is_adapter else "full",
        tensors={} if is_adapter else pair_scales(tensors),
        config=folder.read_json(CONFIG_NAME, LONGEST_CONFIG_BYTES) if CONFIG_NAME in folder.files else None,
        side_files=folder.side_files(),
        fingerprint=fingerprint,
        num_bytes=num_bytes,
        adapter=adapter,
    )


def _map_in_parallel(action: Callable[[str], Result], names: Sequence[str]) -> dict[str, Result]:
    with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="checkpoint") as pool:
        return dict(zip(names, pool.map(action, names), strict=True))


def _read_header(folder: CheckpointFolder, name: str) -> SafetensorsHeader:
    try:
        return read_header(folder.store, name, folder.files[name].size)
    except CorruptObjectError as error:
        raise CheckpointError(f"{folder.display(name)} changed while it was read: {error}; try again") from None


def _collect_tensors(
    folder: CheckpointFolder, headers: Mapping[str, SafetensorsHeader], weight_map: Mapping[str, str] | None
) -> dict[str, TensorSource]:
    """Return the tensors of all files. With an index, each tensor comes from the file that the index names."""
    tensors: dict[str, TensorSource] = {}
    found_in: dict[str, str] = {}
    for file, header in headers.items():
        uri = folder.store.uri(file)
        for name, entry in header.tensors.items():
            if weight_map and weight_map.get(name, file) != file:
                continue
            if name in tensors:
                raise CheckpointError(
                    f"{folder.display('')}: tensor {name!r} is in {found_in[name]} and in {file}, expected one file;"
                    " remove the stale file"
                )
            found_in[name] = file
            tensors[name] = TensorSource(uri, entry.start, entry.stop, entry.dtype, entry.shape)
    for name, file in (weight_map or {}).items():
        if found_in.get(name) != file:
            raise CheckpointError(
                f"{folder.display(INDEX_NAME)} lists tensor {name!r} in {file}, which does not contain it; download"
                " the file and the index again"
            )
    return tensors
