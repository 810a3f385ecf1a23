"""Read consecutive elements of a stored tensor, piece by piece, from an open file or in large requests ahead."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, final

import torch

from ...errors import EigenmergeError
from ...listing import TensorSource
from ...storage.addresses import absolute_uri, is_local
from ...storage.checkpoints.file_version import changed_error, open_unchanged
from ...storage.checkpoints.tensor_reader import TensorReader
from ...storage.file_bytes import read_bytes_into


def open_flat(reader: TensorReader, source: TensorSource, window_bytes: int) -> FlatReader:
    """Open a stored tensor, which is no view and has no scale, to read its bytes piece by piece, also repeatedly.

    Parameters
    ----------
    window_bytes : of one request to a remote store; the next one is made ahead

    Raises
    ------
    CheckpointError : the file is missing or not the one that was planned
    """
    assert source.view is None and source.scale is None, source
    return OpenFileReader(source) if is_local(source.uri) else WindowReader(reader, source, window_bytes)


class FlatReader(Protocol):
    """Reads the bytes of one stored tensor in any order. `close` ends it."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return bytes [start, stop) of the tensor, (stop - start,), uint8; valid until the next call.

        Raises
        ------
        CheckpointError : the file is missing or not the one that was planned
        StoreError : the store refused, or failed after all retries
        """
        ...

    def finish(self) -> None:
        """Check that what was read is the file that was planned, after the last read; errors as `read`."""
        ...

    def close(self) -> None:
        """Close the file, after `finish` or an error."""
        ...


@final
class OpenFileReader:
    """Reads from an open local file into one buffer, which every call overwrites.

    Raises
    ------
    CheckpointError : the file is missing or not the one that was planned
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._opened: AbstractContextManager[int] | None = None
        with self._translated():
            opened = open_unchanged(Path(absolute_uri(source.uri)), source.file)
            self._descriptor = opened.__enter__()
            self._opened = opened

    def read(self, start: int, stop: int) -> torch.Tensor:
        if len(self._buffer) < stop - start:
            self._buffer = torch.empty(stop - start, dtype=torch.uint8)
        piece = self._buffer[: stop - start]
        with self._translated():
            read_bytes_into(self._descriptor, self._source.start + start, piece)
        return piece

    def finish(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            with self._translated():
                opened.__exit__(None, None, None)

    def close(self) -> None:
        with suppress(EigenmergeError):
            self.finish()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except OSError as error:  # includes CorruptObjectError and ObjectChangedError
            changed = changed_error(self._source.uri, error.strerror or str(error))
            changed.source = changed.source or self._source.uri
            raise changed from None


@final
class WindowReader:
    """Fetches windows of a stored object, the next one while the current one is read; the first one at once.

    Parameters
    ----------
    window_bytes : of one request
    """

    def __init__(self, reader: TensorReader, source: TensorSource, window_bytes: int) -> None:
        self._reader = reader
        self._source = source
        self._num_bytes = source.num_bytes
        self._window_bytes = window_bytes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._start = 0
        self._window = torch.empty(0, dtype=torch.uint8)
        self._next: tuple[int, Future[torch.Tensor]] | None = None
        self._ask_for(0)  # at once, so that the first windows of all sources are requested at the same time

    def read(self, start: int, stop: int) -> torch.Tensor:
        pieces: list[torch.Tensor] = []
        while start < stop:
            if not self._start <= start < self._start + len(self._window):
                self._advance(start)
            end = min(stop, self._start + len(self._window))
            pieces.append(self._window[start - self._start : end - self._start])
            start = end
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _advance(self, start: int) -> None:
        if self._next is None or self._next[0] != start:
            self._ask_for(start)
        assert self._next is not None
        self._start, self._window = start, self._next[1].result()
        self._next = None
        following = start + len(self._window)
        if following < self._num_bytes:
            self._ask_for(following)

    def _ask_for(self, start: int) -> None:
        stop = min(start + self._window_bytes, self._num_bytes)
        self._next = start, self._pool.submit(self._reader.fetch, self._source, start, stop)

    def finish(self) -> None:
        return

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
