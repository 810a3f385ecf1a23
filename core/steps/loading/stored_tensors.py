"""The tensors that a loader finds in a checkpoint, from the headers of its files; and a check of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ...errors import CheckpointError
from ...formats.dtypes import DTYPES
from ...formats.file_names import ADAPTER_CONFIG_NAME
from ...formats.safetensors_header import TensorEntry
from ...storage.checkpoints.adapter_folder import find_adapter
from ...storage.checkpoints.folder import choose_weights, open_folder
from ...storage.object_header import read_header
from ...storage.object_ranges import split_ranges
from ...storage.read_ahead import read_ahead
from ...storage.store import Store
from ...storage.torch_dtypes import torch_dtype

_CHUNK_BYTES = 8 * 2**20
_PARALLEL_TENSORS = 2
_MOST_LINES = 20


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors of one checkpoint.

    places : file and bytes of each tensor
    is_adapter : it is an adapter of PEFT
    """

    store: Store
    places: Mapping[str, tuple[str, TensorEntry]]
    is_adapter: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.stop - entry.start for _, entry in self.places.values())


def read_stored_tensors(uri: str, options: Mapping[str, object] | None) -> StoredTensors:
    """Return the tensors of the files that a loader would choose in this directory.

    Raises
    ------
    CheckpointError : no weights, more than one set of them, or a damaged header
    StoreError : the place cannot be read
    """
    folder = open_folder(uri, options)
    adapter = find_adapter(folder)
    names = [adapter.weights] if adapter is not None else choose_weights(folder)[0]
    places: dict[str, tuple[str, TensorEntry]] = {}
    for name in names:
        header = read_header(folder.store, name, folder.files[name].size)
        for tensor, entry in header.tensors.items():
            if tensor in places:
                raise CheckpointError(f"tensor {tensor[:200]!r} is in {places[tensor][0]} and in {name}")
            places[tensor] = (name, entry)
    return StoredTensors(folder.store, places, adapter is not None and ADAPTER_CONFIG_NAME in folder.files)


def find_nonfinite(tensors: StoredTensors) -> tuple[list[str], list[str]]:
    """Look for NaN and Inf in every tensor, in chunks of 8 MiB.

    Cost: one read of the checkpoint.

    Returns
    -------
    problems : one line for each tensor that has such values
    unread : names of tensors whose dtype has no torch equivalent
    """

    def count(name: str) -> tuple[int, int] | None:
        file, entry = tensors.places[name]
        known = DTYPES[entry.dtype]
        if known.kind in ("integer", "bool"):
            return 0, 0
        try:
            dtype = torch_dtype(entry.dtype)
        except CheckpointError:
            return None
        return _count(_chunks(tensors.store, file, entry), dtype)

    with ThreadPoolExecutor(_PARALLEL_TENSORS, thread_name_prefix="values") as pool:
        counts = dict(zip(tensors.places, pool.map(count, tensors.places), strict=True))
    unread = [name for name, found in counts.items() if found is None]
    bad = {name: found for name, found in counts.items() if found is not None and any(found)}
    problems = [f"{name[:200]}: has {nan} NaN and {inf} Inf" for name, (nan, inf) in list(bad.items())[:_MOST_LINES]]
    if len(bad) > _MOST_LINES:
        problems.append(f"{len(bad) - _MOST_LINES} other tensors have NaN or Inf")
    return problems, unread


def _chunks(store: Store, file: str, entry: TensorEntry) -> Iterator[bytes]:
    ranges = split_ranges([(file, entry.start, entry.stop)], _CHUNK_BYTES)
    return read_ahead(lambda chunk: store.read_range(*chunk), ranges)


def _count(chunks: Iterator[bytes], dtype: torch.dtype) -> tuple[int, int]:
    num_nan = num_inf = 0
    for chunk in chunks:
        values = torch.frombuffer(bytearray(chunk), dtype=dtype)
        if dtype.itemsize == 1:  # torch has no tests for float8
            values = values.float()
        if not bool(torch.isfinite(values).all()):
            num_nan += int(torch.isnan(values).sum())
            num_inf += int(torch.isinf(values).sum())
    return num_nan, num_inf
