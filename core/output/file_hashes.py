"""Compute the sha256 of every output file during the merge. Afterwards it would take longer than the copy."""

from __future__ import annotations

import threading

from ..cache.reports import ShardReport
from ..planning.plan import OutputFile, Plan
from ..planning.shards import OutputEntry, output_entries, output_header, written_bytes
from ..run import Run
from ..storage.assembly.file_hash import FileHash
from ..storage.assembly.part_check import TensorBytes


def file_entries(plan: Plan, file: OutputFile) -> list[OutputEntry]:
    """Return the stored tensors of a file, in the order of their bytes."""
    tensors = (tensor for index in file.shards for tensor in plan.shards[index].tensors)
    return [entry for tensor in tensors for entry in output_entries(tensor)]


def file_header(plan: Plan, file: OutputFile) -> bytes:
    """Return the safetensors header of an output file."""
    return output_header(file_entries(plan, file))


def part_tensors(plan: Plan, report: ShardReport) -> list[TensorBytes]:
    """Return size and hash of each tensor of a part, in the order of the bytes."""
    planned = plan.shards[report.index].tensors
    return [
        TensorBytes(tensor.name, written_bytes(tensor), done.sha256)
        for tensor, done in zip(planned, report.tensors, strict=True)
    ]


class FileHashes:
    """Accepts finished parts in any order and hashes each file in the order of its bytes. Use as a context manager.

    Does nothing for a remote store, where hashing would fetch all parts: there the manifest has the parts' checksums.
    """

    def __init__(self, run: Run) -> None:
        self._plan = plan = run.plan
        self._store = run.store
        self._file_of = {index: file for file in plan.files for index in file.shards} if run.store.is_local else {}
        self._waiting: dict[int, ShardReport] = {}
        self._hashes: dict[str, FileHash] = {}
        self._next: dict[str, int] = {}  # position in the file's shards
        self._lock = threading.Lock()

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(self, *_: object) -> None:
        for hashing in self._hashes.values():
            hashing.close()

    def add_part(self, report: ShardReport) -> None:
        """Add a part that is in the store. Does not wait for the hash."""
        file = self._file_of.get(report.index)
        if file is None:
            return
        with self._lock:
            self._waiting[report.index] = report
            position = self._next.get(file.name, 0)
            while position < len(file.shards) and file.shards[position] in self._waiting:
                if file.name not in self._hashes:
                    self._hashes[file.name] = FileHash(self._store, file_header(self._plan, file))
                done = self._waiting.pop(file.shards[position])
                tensors = part_tensors(self._plan, done)
                self._hashes[file.name].add(done.part_key, done.header_bytes, done.num_bytes, tensors, done.crc32)
                position += 1
            self._next[file.name] = position

    def result(self, file: OutputFile) -> str | None:
        """Return the hexadecimal hash of a file, after waiting for it; None if a part of the file was not added."""
        if self._next.get(file.name) != len(file.shards):
            return None
        return self._hashes[file.name].result()
