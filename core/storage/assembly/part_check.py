"""Compare the bytes of a part with the hashes of its tensors, known since they were computed, while it is joined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import CorruptObjectError


class DamagedPartError(CorruptObjectError):
    """A part has other bytes than those that were computed; its size and its etag do not show it."""


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """The bytes of one tensor in a part: how many, and their sha256."""

    name: str
    num_bytes: int
    sha256: str


class PartCheck:
    """Compares consecutive chunks of the data of a part with the hashes of its tensors.

    Parameters
    ----------
    place : of the bytes, for messages
    tensors : in the order of their bytes
    """

    def __init__(self, place: str, tensors: Sequence[TensorBytes]) -> None:
        self._place = place
        self._tensors = tensors
        self._position = 0
        self._left = tensors[0].num_bytes if tensors else 0
        self._hash = hashlib.sha256()

    def update(self, chunk: bytes | bytearray | memoryview) -> None:
        """Add the next bytes.

        Raises
        ------
        DamagedPartError : a tensor has another hash, or there are more bytes than tensors
        """
        rest = memoryview(chunk).cast("B")
        while rest or (not self._left and self._position < len(self._tensors)):
            if self._position == len(self._tensors):
                raise DamagedPartError(f"{self._place}: has more bytes than its tensors")
            taken = rest[: self._left]
            self._hash.update(taken)
            rest, self._left = rest[len(taken) :], self._left - len(taken)
            if not self._left:
                self._finish_tensor()

    def finish(self) -> None:
        """Check that all tensors were complete.

        Raises
        ------
        DamagedPartError : bytes are missing
        """
        self.update(b"")
        if self._position < len(self._tensors):
            raise DamagedPartError(f"{self._place}: ends within tensor {self._tensors[self._position].name[:200]!r}")

    def _finish_tensor(self) -> None:
        tensor = self._tensors[self._position]
        if self._hash.hexdigest() != tensor.sha256:
            raise DamagedPartError(
                f"{self._place}: tensor {tensor.name[:200]!r} has other bytes than when it was computed; the storage"
                " changed them: check the disk, and run the same command again"
            )
        self._position += 1
        self._hash = hashlib.sha256()
        self._left = self._tensors[self._position].num_bytes if self._position < len(self._tensors) else 0
