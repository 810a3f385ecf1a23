"""Stored tensors, whole or some of their rows: memory-mapped where the file is local, ranged reads where it is not."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch

from ...errors import CheckpointError, CorruptObjectError, ObjectNotFoundError
from ...formats.object_names import check_key
from ...formats.redaction import redact
from ...listing import TensorSource
from ..addresses import absolute_uri, is_local
from ..mapped_file import map_bytes, view_as
from ..object_bytes import fetch_bytes
from ..retries import RetryPolicy
from ..store import Store, locate_object
from ..torch_dtypes import torch_dtype
from .float8_values import dequantize


@final
class TensorReader:
    """Reads tensors of any number of files, and counts the bytes.

    Local: the result is a private memory map of the file, read when it is touched; nothing is copied before a cast, and
    the memory is given back with the tensor. Writing to the tensor changes no file. Remote: chunks of 8 MiB, several at
    a time, straight into the tensor's memory. Safe to share between threads; not picklable (make one in each process).

    Parameters
    ----------
    storage_options : mapping, optional
        As for `Store`
    """

    def __init__(
        self, storage_options: Mapping[str, object] | None = None, *, retry: RetryPolicy | None = None
    ) -> None:
        self._options = storage_options
        self._retry = retry
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of stored tensors read so far, scales included."""
        return self._bytes_read

    def read(self, source: TensorSource, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor, or its rows [start, stop) alone.

        Returns
        -------
        Tensor, `source.shape` (or (stop - start, ...)), of the stored dtype; float32 where a float8 has a scale; CPU

        Raises
        ------
        CheckpointError : the file is gone or shorter than when it was planned; a dtype without a torch equivalent
        StoreError : the store refuses or does not answer
        """
        start, stop, shape = _byte_range(source, rows)
        dtype = torch_dtype(source.dtype)
        if start == stop:
            stored = torch.empty(shape, dtype=dtype)
        elif is_local(source.uri):
            stored = view_as(self._map(source.uri, start, stop), dtype).reshape(shape)
        else:
            stored = self._fetch(source.uri, start, stop).view(dtype).reshape(shape)
        with self._lock:
            self._bytes_read += stop - start
        if source.scale is None:
            return stored
        return dequantize(stored, self.read(source.scale), source, rows)

    def _map(self, uri: str, start: int, stop: int) -> torch.Tensor:
        try:
            return map_bytes(Path(absolute_uri(uri)), start, stop)
        except OSError as error:  # CorruptObjectError is one
            raise _changed(uri, error.strerror or str(error)) from None

    def _fetch(self, uri: str, start: int, stop: int) -> torch.Tensor:
        store, key = self._resolve(uri)
        try:
            return fetch_bytes(store, key, start, stop)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            raise _changed(uri, str(error)) from None

    def _resolve(self, uri: str) -> tuple[Store, str]:
        # Known stores keep their connection; resolving anew would make a client for every tensor.
        folder, _, name = uri.rpartition("/")
        with self._lock:
            store = self._stores.get(folder)
            if store is None:
                store = self._stores[folder] = locate_object(uri, self._options, retry=self._retry)[0]
        return store, check_key(name)


def _byte_range(source: TensorSource, rows: tuple[int, int] | None) -> tuple[int, int, tuple[int, ...]]:
    if rows is None:
        return source.start, source.stop, source.shape
    first, last = rows
    assert 0 <= first <= last <= source.shape[0], (rows, source.shape)
    row_bytes = source.num_bytes // source.shape[0] if source.shape[0] else 0
    return source.start + first * row_bytes, source.start + last * row_bytes, (last - first, *source.shape[1:])


def _changed(uri: str, found: str) -> CheckpointError:
    return CheckpointError(f"{redact(uri)} has changed since the plan was made: {found}; plan again")
