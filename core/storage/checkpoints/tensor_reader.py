"""Read stored tensors, or some of their rows, from files that must be in the state in which they were planned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

import torch

from ...errors import CorruptObjectError, EigenmergeError, ObjectChangedError, ObjectNotFoundError
from ...formats.object_names import check_key
from ...listing import Adaptation, Concatenation, FileVersion, LoraSource, Reshaping, Selection, TensorSource
from ...views import has_scale, select
from ..addresses import absolute_uri, is_local, split_address
from ..file_bytes import read_file_bytes
from ..object_bytes import fetch_bytes
from ..retries import RetryPolicy
from ..store import Store, locate_object
from ..torch_dtypes import torch_dtype
from .file_version import changed_error, open_unchanged
from .float8_values import dequantize


@final
class TensorReader:
    """Reads tensors from any number of files, and counts the bytes.

    Local files are read into memory and not mapped: a mapped file that is rewritten changes the tensor, and one that is
    truncated ends the process with SIGBUS. The state of the file is compared before and after each read. Remote files:
    parallel requests of 8 MiB, written directly into the memory of the tensor; S3 compares the etag in each request,
    other storages after the last one. Thread-safe; not picklable, so each process makes its own.

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
        """Read one tensor, or its rows [start, stop). A view is made of the stored tensors that it consists of.

        Returns
        -------
        Tensor, `source.shape` or (stop - start, ...), on the CPU
            Of the stored dtype; float32 if a float8 tensor has a scale or factors are added to a matrix

        Raises
        ------
        CheckpointError : the file is missing or not the one that was planned; a dtype that torch does not have
        StoreError : the store refused, or failed after all retries
        """
        try:
            return self._read(source, rows)
        except EigenmergeError as error:
            error.source = error.source or source.uri
            raise

    def _read(self, source: TensorSource, rows: tuple[int, int] | None) -> torch.Tensor:
        if source.view is not None:
            return self._read_view(source if rows is None else select(source, 0, *rows), self.read)
        start, stop, shape = _byte_range(source, rows)
        dtype = torch_dtype(source.dtype)
        if start == stop:
            stored = torch.empty(shape, dtype=dtype)
        else:
            read = self._read_local if is_local(source.uri) else self._fetch
            stored = read(source.uri, start, stop, source.file).view(dtype).reshape(shape)
        with self._lock:
            self._bytes_read += stop - start
        if source.scale is None:
            return stored
        return dequantize(stored, self.read(source.scale), source, rows)

    def fetch(self, source: TensorSource, start: int, stop: int) -> torch.Tensor:
        """Return bytes [start, stop) of a stored tensor in a remote store, uint8. Errors as `read`; does not count."""
        try:
            return self._fetch(source.uri, source.start + start, source.start + stop, source.file)
        except EigenmergeError as error:
            error.source = error.source or source.uri
            raise

    def count_bytes(self, number: int) -> None:
        """Add to `bytes_read` what was read without `read`."""
        with self._lock:
            self._bytes_read += number

    @staticmethod
    def _add_factors(source: TensorSource, lora: LoraSource, read: Callable[..., torch.Tensor]) -> torch.Tensor:
        dtype = torch.float64 if source.dtype == "F64" else torch.float32
        up, down = read(lora.up).to(dtype), read(lora.down).to(dtype)
        left, right = (down.T, up.T) if lora.fan_in_fan_out else (up, down)
        return torch.addmm(read(source).to(dtype), left, right, alpha=lora.scaling)

    def _read_view(self, source: TensorSource, read: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Make a view of what `read` returns for its pieces."""
        view = source.view
        if view is None:  # rows of a concatenation, all of them in one stored tensor
            return read(source)
        if isinstance(view, Concatenation):
            return self._join(source, view, read)
        if isinstance(view, Adaptation):
            return self._add_factors(view.source, view.lora, read)
        if isinstance(view, Selection):
            if view.dim == 0 and view.step == 1 and view.source.view is None:
                return read(view.source, (view.start, view.stop))
            whole = read(view.source)
            return whole[(slice(None),) * view.dim + (slice(view.start, view.stop, view.step),)]
        inner = read(view.source)
        return inner.reshape(source.shape) if isinstance(view, Reshaping) else inner.transpose(-1, -2).contiguous()

    @staticmethod
    def _join(source: TensorSource, view: Concatenation, read: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Read one piece after the other into the joined tensor, so that only one is in memory beside it."""
        joined = torch.empty(source.shape, dtype=torch.float32 if has_scale(source) else torch_dtype(source.dtype))
        position = 0
        for piece in view.pieces:
            length = piece.shape[view.dim]
            joined.narrow(view.dim, position, length).copy_(read(piece))
            position += length
        return joined

    def read_scale(self, source: TensorSource, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """Return what multiplies each stored number of a float8 tensor, of its shape or of these rows, float32."""
        if source.view is not None:
            return self._read_view(source if rows is None else select(source, 0, *rows), self.read_scale)
        shape = source.shape if rows is None else (rows[1] - rows[0], *source.shape[1:])
        ones = torch.ones(shape, dtype=torch_dtype(source.dtype))
        if source.scale is None:
            return ones.to(torch.float32)
        return dequantize(ones, self.read(source.scale), source, rows)

    def _read_local(self, uri: str, start: int, stop: int, version: FileVersion | None) -> torch.Tensor:
        try:
            with open_unchanged(Path(absolute_uri(uri)), version) as descriptor:
                return read_file_bytes(descriptor, start, stop)
        except OSError as error:  # includes CorruptObjectError and ObjectChangedError
            raise changed_error(uri, error.strerror or str(error)) from None

    def _fetch(self, uri: str, start: int, stop: int, version: FileVersion | None) -> torch.Tensor:
        store, key = self._locate(uri)
        try:
            return fetch_bytes(store, key, start, stop, version.etag if version is not None else "")
        except (CorruptObjectError, ObjectChangedError, ObjectNotFoundError) as error:
            raise changed_error(uri, str(error)) from None

    def _locate(self, uri: str) -> tuple[Store, str]:
        # One store per directory: a new store for each tensor would open a new connection each time.
        folder, name = split_address(uri)
        with self._lock:
            store = self._stores.get(folder)
            if store is None:
                store = self._stores[folder] = locate_object(uri, self._options, retry=self._retry)[0]
        return store, check_key(name)


def _byte_range(source: TensorSource, rows: tuple[int, int] | None) -> tuple[int, int, tuple[int, ...]]:
    """Return start and stop in the file, and the shape."""
    if rows is None:
        return source.start, source.stop, source.shape
    first, last = rows
    assert 0 <= first <= last <= source.shape[0], (rows, source.shape)
    row_bytes = source.num_bytes // source.shape[0] if source.shape[0] else 0
    return source.start + first * row_bytes, source.start + last * row_bytes, (last - first, *source.shape[1:])
