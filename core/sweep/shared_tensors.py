"""Tensors that no candidate of a sweep changes: means of 1-D tensors and embeddings, copies of the base.

They are merged once and kept in a temporary folder, because each costs a read of every expert.
"""

from __future__ import annotations

import mmap
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import final

from ..planning.plan import Plan, TensorPlan


@final
class SharedTensors:
    """The bytes of tensors that are planned alike in several plans. A context manager: its end deletes the folder.

    Parameters
    ----------
    first, second : plans of two candidates that differ in every parameter that the sweep varies
    scratch : where the temporary folder is made
    """

    def __init__(self, first: Plan, second: Plan, scratch: str | None = None) -> None:
        others = {tensor.name: tensor for shard in second.shards for tensor in shard.tensors}
        tensors = [tensor for shard in first.shards for tensor in shard.tensors]
        self._plans = {tensor.name: tensor for tensor in tensors if others.get(tensor.name) == tensor}
        self._folder = tempfile.TemporaryDirectory(prefix="eigenmerge-sweep-", dir=scratch)
        self._locks = {name: threading.Lock() for name in self._plans}
        self._files = {name: Path(self._folder.name) / str(number) for number, name in enumerate(self._plans)}

    def __enter__(self) -> SharedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def __contains__(self, tensor: TensorPlan) -> bool:
        return self._plans.get(tensor.name) == tensor

    def get(self, tensor: TensorPlan, merge: Callable[[TensorPlan], memoryview]) -> memoryview:
        """Return the bytes of a tensor, which `merge` makes at the first call."""
        path = self._files[tensor.name]
        with self._locks[tensor.name]:
            if not path.exists():
                data = merge(tensor)
                partial = path.with_suffix(".partial")
                partial.write_bytes(data)
                partial.rename(path)
                return data
        if path.stat().st_size == 0:
            return memoryview(b"")
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
