"""List an input model without reading its weights: tensors with their locations, config, side files, fingerprint."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from ...errors import CheckpointError, CorruptObjectError, ObjectChangedError, ObjectNotFoundError
from ...formats.bounded_json import LONGEST_CONFIG_BYTES
from ...formats.file_names import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, CONFIG_NAME
from ...formats.redaction import redact
from ...formats.safetensors_header import SafetensorsHeader
from ...listing import AdapterListing, FileVersion, ModelListing, TensorSource
from ..addresses import public_url
from ..object_hash import hash_ranges
from ..object_header import read_header
from .adapter_folder import find_adapter
from .file_version import check_unchanged, observe_file
from .fingerprint import (
    FingerprintKind,
    fingerprint_adapted_model,
    fingerprint_adapter,
    fingerprint_file,
    fingerprint_model,
    hashes_all_bytes,
)
from .float8_scales import pair_scales
from .folder import CheckpointFolder, NoModelError, choose_weights, find_home, open_folder
from .references import locate_model, parse_reference
from .samples import COMPLETE, digest_file
from .sharded_tensors import TensorPart, check_scales, join_parts, part_offsets

Result = TypeVar("Result")

_PARALLEL_FILES = 16
_VOCABULARY_FILE = re.compile(r"tokenizer\.json|vocab\.(json|txt)|.*\.(model|tiktoken|spm|bpe)")
_TOKENIZER_FILE = re.compile(
    rf"{_VOCABULARY_FILE.pattern}|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|merges\.txt"
    r"|chat_template\.\w+|(additional_chat_templates/)?\w+\.jinja"
)


class ModelLister:
    """Lists models, each place once: a hundred adapters on one base need its fingerprint once. Thread-safe.

    Parameters
    ----------
    storage_options, fingerprint : as for `list_model`
    complete : called with the listing of each place; returns the one to use
    """

    def __init__(
        self,
        storage_options: Mapping[str, object] | None = None,
        *,
        fingerprint: FingerprintKind = "sampled",
        complete: Callable[[ModelListing], ModelListing] | None = None,
    ) -> None:
        self._options, self._complete = storage_options, complete
        self._kind: FingerprintKind = fingerprint
        self._found: dict[str, Future[ModelListing]] = {}
        self._lock = threading.Lock()

    def list_reference(self, reference: str) -> ModelListing:
        """Return the listing of a reference. Cost and errors as `list_model`."""
        alternatives = parse_reference(reference)
        for number, parsed in enumerate(alternatives, 1):
            try:
                model = self._at(locate_model(parsed.model))
                if parsed.adapter is None:
                    return replace(model, name=redact(reference))
                return add_adapter(model, self._at(locate_model(parsed.adapter)), reference)
            except (NoModelError, ObjectNotFoundError) as error:
                if number == len(alternatives):
                    raise CheckpointError(str(error)) from None
        raise AssertionError("parse_reference returned no alternative")

    def _at(self, uri: str) -> ModelListing:
        with self._lock:
            found = self._found.get(uri)
            is_first = found is None
            if found is None:
                found = self._found[uri] = Future()
        if is_first:
            try:
                listing = _list_location(uri, self._options, self._kind)
                found.set_result(listing if self._complete is None else self._complete(listing))
            except BaseException as error:
                found.set_exception(error)
        return found.result()


def list_model(
    reference: str, storage_options: Mapping[str, object] | None = None, *, fingerprint: FingerprintKind = "sampled"
) -> ModelListing:
    """List a model from its headers.

    Cost: one listing of the directory; for each file, in parallel, one read of its header (two if it is longer than
    64 KiB) and what its fingerprint needs: all bytes of a model of at most 1 GiB (64 MiB on remote storage), otherwise
    16 KiB of every tensor (at most 17 requests for each remote file). Nothing for large files on the Hub, which states
    their hash. All weights for `fingerprint="content"`.

    Parameters
    ----------
    reference : str
        A directory, a .safetensors file, a URL that fsspec can open, or a Hub id; a full model or a PEFT adapter.
        `hub_id@revision` selects a revision, `model+adapter` adds an adapter.
    storage_options : mapping, optional
        As for `Store`
    fingerprint : "sampled" | "content"
        Hash all bytes of small models only, or of every model (`hashes_all_bytes`)

    Raises
    ------
    CheckpointError : no such model; an unfinished merge or files of several models; pickled weights; a damaged header,
        index or config
    StoreError : the store refused, or failed after all retries
    """
    return ModelLister(storage_options, fingerprint=fingerprint).list_reference(reference)


def add_adapter(model: ModelListing, adapter: ModelListing, reference: str) -> ModelListing:
    """Return the listing of a model with an adapter.

    Parameters
    ----------
    reference : "model+adapter", as written

    Raises
    ------
    CheckpointError : the model is an adapter, or the adapter is none
    """
    if model.kind != "full":
        raise CheckpointError(f"{redact(reference)!r}: {model.uri} is an adapter; expected a full model before '+'")
    if adapter.adapter is None:
        raise CheckpointError(
            f"{redact(reference)!r}: {redact(adapter.uri)} is not an adapter; expected a directory with"
            f" {ADAPTER_CONFIG_NAME} and {ADAPTER_WEIGHTS_NAME}"
        )
    return replace(
        model,
        name=redact(reference),
        kind="full+adapter",
        side_files=_with_tokenizer_of(adapter.side_files, model.side_files),
        adapter=adapter.adapter,
        fingerprint=fingerprint_adapted_model(model.fingerprint, adapter.fingerprint),
        num_bytes=model.num_bytes + adapter.num_bytes,
    )


def _with_tokenizer_of(adapter: Mapping[str, str], model: Mapping[str, str]) -> Mapping[str, str]:
    """Return the model's side files with the tokenizer and the chat template of the adapter, which may have new tokens.

    Parameters
    ----------
    adapter, model : URI of each file by name
    """
    own = {name: uri for name, uri in adapter.items() if _TOKENIZER_FILE.fullmatch(name)}
    if any(_VOCABULARY_FILE.fullmatch(name) for name in own):  # then files of the model's tokenizer would contradict it
        model = {name: uri for name, uri in model.items() if not _TOKENIZER_FILE.fullmatch(name)}
    return dict(sorted({**model, **own}.items()))


def _list_location(uri: str, options: Mapping[str, object] | None, kind: FingerprintKind) -> ModelListing:
    folder = open_folder(uri, options)
    adapter_files = find_adapter(folder)
    names, weight_map = ([adapter_files.weights], None) if adapter_files is not None else choose_weights(folder)
    states = _map_in_parallel(lambda name: observe_file(folder.store, name, folder.files[name]), names)
    complete = hashes_all_bytes(kind, (states[name] for name in names if not folder.files[name].sha256))
    read = _map_in_parallel(lambda name: _read_weight_file(folder, name, states[name], complete), names)
    tensors = _collect_tensors(folder, read, weight_map)
    fingerprint = fingerprint_model(
        fingerprint_file(file.version, folder.store.local_path(name), public_url(folder.store.uri(name)))
        for name, file in read.items()
    )
    num_bytes = sum(source.num_bytes for source in tensors.values())
    adapter, home = None, folder if adapter_files is not None else find_home(folder, options)
    if adapter_files is not None:
        adapter_config = folder.read_json(ADAPTER_CONFIG_NAME, LONGEST_CONFIG_BYTES)
        fingerprint = fingerprint_adapter(fingerprint, adapter_config)
        adapter = AdapterListing(
            folder.uri, adapter_config, tensors, fingerprint, num_bytes, unused_files=adapter_files.unused
        )
    return ModelListing(
        name=redact(uri),
        uri=home.uri,
        kind="adapter" if adapter is not None else "full",
        tensors={} if adapter is not None else pair_scales(tensors),
        config=home.read_json(CONFIG_NAME, LONGEST_CONFIG_BYTES) if CONFIG_NAME in home.files else None,
        side_files=home.side_files(),
        fingerprint=fingerprint,
        num_bytes=num_bytes,
        adapter=adapter,
    )


def _map_in_parallel(action: Callable[[str], Result], names: Sequence[str]) -> dict[str, Result]:
    with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="checkpoint") as pool:
        return dict(zip(names, pool.map(action, names), strict=True))


@dataclass(frozen=True, slots=True)
class _WeightFile:
    header: SafetensorsHeader
    version: FileVersion


def _read_weight_file(folder: CheckpointFolder, name: str, state: FileVersion, complete: bool) -> _WeightFile:
    """Return the header of a weight file, and its state with a digest of the same bytes."""
    store, stated_hash = folder.store, folder.files[name].sha256
    try:
        try:
            header = read_header(store, name, state.size, state.etag)
        except ObjectChangedError:  # since the listing, or the server lists another etag than it answers reads with
            state = observe_file(store, name)
            header = read_header(store, name, state.size, state.etag)
        if stated_hash:
            digest = COMPLETE + stated_hash
        else:
            digest = digest_file(store, name, header, state.etag, complete=complete)
        check_unchanged(store, name, state)
    except (CorruptObjectError, ObjectChangedError) as error:
        raise CheckpointError(f"{folder.display(name)} changed while it was read: {error}; try again") from None
    return _WeightFile(header, replace(state, digest=digest))


def _collect_tensors(
    folder: CheckpointFolder, files: Mapping[str, _WeightFile], weight_map: Mapping[str, str] | None
) -> dict[str, TensorSource]:
    """Return the tensors of all files. With an index, each tensor comes from the file that the index names.

    Files of a distributed checkpoint hold parts of tensors, which are joined.
    """
    parts: dict[str, list[TensorPart]] = {}
    in_parts: set[str] = set()  # the tensors that the files may hold in parts
    found_in: dict[str, str] = {}
    for file, read in files.items():
        uri = folder.store.uri(file)
        offsets = part_offsets(read.header, folder.display(file))
        in_parts.update(offsets or ())
        for name, entry in read.header.tensors.items():
            if weight_map and weight_map.get(name, file) != file:
                _check_equal_copy(folder, name, file, weight_map[name], files)
                continue
            if name in parts and name not in in_parts:
                raise CheckpointError(
                    f"{folder.display('')}: tensor {name!r} is in {found_in[name]} and in {file}, expected one file;"
                    " remove the stale file"
                )
            found_in[name] = file
            source = TensorSource(uri, entry.start, entry.stop, entry.dtype, entry.shape, file=read.version)
            start = offsets[name] if offsets is not None else (0,) * len(entry.shape)
            parts.setdefault(name, []).append(TensorPart(file, start, source))
    for name, file in (weight_map or {}).items():
        if found_in.get(name) != file:
            raise CheckpointError(
                f"{folder.display(folder.index_name)} lists tensor {name!r} in {file}, which does not contain it;"
                " download the file and the index again"
            )
    tensors = {
        name: join_parts(name, found, folder.display("")) if name in in_parts else found[0].source
        for name, found in parts.items()
    }
    check_scales(tensors, folder.display(""))
    return tensors


def _check_equal_copy(
    folder: CheckpointFolder, name: str, file: str, chosen: str, files: Mapping[str, _WeightFile]
) -> None:
    """Check that a tensor, which the index has in the file `chosen`, is the same in `file`.

    Cost: one read of both.

    Raises
    ------
    CheckpointError : it differs, so the files come from different models
    """
    there = files[chosen].header.tensors.get(name) if chosen in files else None
    if there is None:
        return  # an index that names a file without the tensor is refused
    here = files[file].header.tensors[name]
    if (here.dtype, here.shape) == (there.dtype, there.shape):
        copies = ((file, here), (chosen, there))
        hashes = {hash_ranges(folder.store, [(key, entry.start, entry.stop)]) for key, entry in copies}
        if len(hashes) == 1:
            return
    raise CheckpointError(
        f"{folder.display('')}: tensor {name!r} differs in {chosen} and in {file}: the files come from different"
        " models; download all of them again"
    )
