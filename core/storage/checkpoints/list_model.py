"""What a checkpoint holds, without its weights: tensors and their places, config, fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, TypeVar

from ...errors import CheckpointError, CorruptObjectError, ObjectNotFoundError
from ...formats.bounded_json import LONGEST_CONFIG_BYTES
from ...formats.digest import hash_json
from ...formats.file_names import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, CONFIG_NAME, INDEX_NAME
from ...formats.redaction import redact
from ...formats.safetensors_header import SafetensorsHeader
from ...listing import AdapterListing, ModelListing, TensorSource
from ..object_hash import hash_object
from ..object_header import read_header
from .float8_scales import pair_scales
from .folder import (
    CheckpointFolder,
    NoModelError,
    choose_weights,
    open_folder,
)
from .references import ParsedReference, locate_model, parse_reference

Fingerprint = Literal["stat", "content"]
Result = TypeVar("Result")

_PARALLEL_FILES = 16


def list_model(
    reference: str, storage_options: Mapping[str, object] | None = None, *, fingerprint: Fingerprint = "stat"
) -> ModelListing:
    """List a model: a few ranged reads, no weights (but all of them for `fingerprint="content"`).

    Cost: one list of the directory and one read a file (two where a header is longer than 64 KiB), files in parallel.

    Parameters
    ----------
    reference : str
        A directory, a .safetensors file, a URL of anything that fsspec opens, a Hub id, each sharded or not, a PEFT
        adapter directory; `hub_id@revision`; `model+adapter`.
    storage_options : mapping, optional
        As for `Store`
    fingerprint : "stat" | "content"
        Of what the fingerprint is made: name, header, size and etag (locally the modification time), or the bytes

    Raises
    ------
    CheckpointError : no such model; pickled weights; a damaged header, index or config
    StoreError : the place refuses or does not answer
    """
    readings = parse_reference(reference)
    for number, reading in enumerate(readings):
        try:
            return _list_reference(reference, reading, storage_options, fingerprint)
        except (NoModelError, ObjectNotFoundError) as error:
            if number == len(readings) - 1:
                raise CheckpointError(str(error)) from None
    raise AssertionError("parse_reference() gave no reading")


def _list_reference(
    reference: str, reading: ParsedReference, options: Mapping[str, object] | None, fingerprint: Fingerprint
) -> ModelListing:
    model = _list_place(locate_model(reading.model), options, fingerprint)
    if reading.adapter is None:
        return replace(model, name=redact(reference))
    if model.kind != "full":
        raise CheckpointError(
            f"{redact(reference)!r}: {model.uri} is an adapter itself; expected a full model before '+'"
        )
    adapter = _list_place(locate_model(reading.adapter), options, fingerprint).adapter
    if adapter is None:
        raise CheckpointError(
            f"{redact(reference)!r}: {redact(reading.adapter)} is not an adapter; expected a directory with"
            f" {ADAPTER_CONFIG_NAME} and {ADAPTER_WEIGHTS_NAME}"
        )
    return replace(
        model,
        name=redact(reference),
        kind="full+adapter",
        adapter=adapter,
        fingerprint=hash_json([model.fingerprint, adapter.fingerprint]),
        num_bytes=model.num_bytes + adapter.num_bytes,
    )


def _list_place(uri: str, options: Mapping[str, object] | None, fingerprint: Fingerprint) -> ModelListing:
    folder = open_folder(uri, options)
    names, weight_map = choose_weights(folder)
    headers = _in_parallel(lambda name: _read_header(folder, name), names)
    tensors = _merge_tensors(folder, headers, weight_map)
    prints = _in_parallel(lambda name: _file_fingerprint(folder, headers[name], name, fingerprint), names)
    whole = hash_json([[name, prints[name]] for name in sorted(names)])
    num_bytes = sum(source.num_bytes for source in tensors.values())
    is_adapter = names == [ADAPTER_WEIGHTS_NAME] and ADAPTER_CONFIG_NAME in folder.files
    adapter = None
    if is_adapter:
        adapter_config = folder.json_object(ADAPTER_CONFIG_NAME, LONGEST_CONFIG_BYTES)
        whole = hash_json([whole, adapter_config])  # alpha and rank change what the same factors mean
        adapter = AdapterListing(folder.uri, adapter_config, tensors, whole, num_bytes)
    return ModelListing(
        name=redact(uri),
        uri=folder.uri,
        kind="adapter" if is_adapter else "full",
        tensors={} if is_adapter else pair_scales(tensors),
        config=folder.json_object(CONFIG_NAME, LONGEST_CONFIG_BYTES) if CONFIG_NAME in folder.files else None,
        side_files=folder.side_files(),
        fingerprint=whole,
        num_bytes=num_bytes,
        adapter=adapter,
    )


def _in_parallel(action: Callable[[str], Result], names: Sequence[str]) -> dict[str, Result]:
    with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="checkpoint") as pool:
        return dict(zip(names, pool.map(action, names), strict=True))


def _read_header(folder: CheckpointFolder, name: str) -> SafetensorsHeader:
    try:
        return read_header(folder.store, name, folder.files[name].size)
    except CorruptObjectError as error:
        raise CheckpointError(f"{folder.path(name)} changed while it was read: {error}") from None


def _merge_tensors(
    folder: CheckpointFolder, headers: Mapping[str, SafetensorsHeader], weight_map: Mapping[str, str] | None
) -> dict[str, TensorSource]:
    tensors: dict[str, TensorSource] = {}
    found_in: dict[str, str] = {}
    for file, header in headers.items():
        uri = folder.store.uri(file)
        for name, entry in header.tensors.items():
            meant = weight_map.get(name, file) if weight_map else file
            if meant != file:
                continue  # the index names another file for it
            if name in tensors:
                raise CheckpointError(f"{folder.path('')}: tensor {name!r} is in {found_in[name]} and in {file}")
            found_in[name] = file
            tensors[name] = TensorSource(uri, entry.start, entry.stop, entry.dtype, entry.shape)
    for name, file in (weight_map or {}).items():
        if found_in.get(name) != file:
            raise CheckpointError(
                f"{folder.path(INDEX_NAME)} says tensor {name!r} is in {file}, and it is not; download it again"
            )
    return tensors


def _file_fingerprint(folder: CheckpointFolder, header: SafetensorsHeader, name: str, kind: Fingerprint) -> str:
    info = folder.files[name]
    if kind == "content":
        return hash_object(folder.store, name, info.size)
    tensors = [[key, entry.dtype, entry.shape, entry.start] for key, entry in sorted(header.tensors.items())]
    return hash_json([name, info.size, info.etag, tensors, dict(header.metadata)])
