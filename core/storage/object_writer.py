"""ObjectWriter: writes an object in chunks, counts its bytes and hashes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import final

from .backends.protocol import BackendWriter


@final
class ObjectWriter:
    """The result of `Store.open_write`: writes chunks, counts and hashes them.

    num_bytes : bytes written so far
    """

    def __init__(self, writer: BackendWriter, translate_errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._writer = writer
        self._translate_errors = translate_errors
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a chunk."""
        view = memoryview(chunk).cast("B")
        with self._translate_errors():
            self._writer.write(view)
        self._hash.update(view)
        self.num_bytes += len(view)

    @property
    def sha256(self) -> str:
        """Hash of everything written so far, hexadecimal."""
        return self._hash.hexdigest()
