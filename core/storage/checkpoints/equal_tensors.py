"""Compare stored tensors of one model byte by byte, to find tied weights that are stored under several names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...listing import Concatenation, TensorSource
from ...views import stored_tensors
from ..store import Store, locate_object

_NUM_SAMPLES = 16
_SAMPLE_BYTES = 4096
_CHUNK_BYTES = 8 * 2**20


def find_equal_tensors(
    tensors: Mapping[str, TensorSource],
    groups: Iterable[Sequence[str]],
    storage_options: Mapping[str, object] | None = None,
    *,
    samples_only: bool = False,
) -> dict[str, str]:
    """Return, for each tensor that equals an earlier one of its group, the name of that one.

    Cost: 64 KiB for a tensor that differs, all bytes of two that are equal.

    Parameters
    ----------
    groups : names of tensors of equal size
    samples_only : take equal samples for equal tensors, where the model says that they are tied

    Raises
    ------
    StoreError, CorruptObjectError : a file cannot be read
    """
    stores: dict[str, tuple[Store, str]] = {}

    def read(source: TensorSource, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) of the stored parts of a tensor, one after the other."""
        data, first = b"", 0  # of the part, in the tensor
        for part in stored_tensors(source):
            begin, end = max(start - first, 0), min(stop - first, part.num_bytes)
            if begin < end:
                if part.uri not in stores:
                    stores[part.uri] = locate_object(part.uri, storage_options)
                store, key = stores[part.uri]
                data += store.read_range(key, part.start + begin, part.start + end)
            first += part.num_bytes
        return data

    def equal(one: TensorSource, other: TensorSource) -> bool:
        if _layout(one) != _layout(other):
            return False  # parts of other shapes: the bytes are in another order
        size = one.num_bytes
        ranges = [(size * index // _NUM_SAMPLES, _SAMPLE_BYTES) for index in range(_NUM_SAMPLES)]
        if not samples_only or size <= _NUM_SAMPLES * _SAMPLE_BYTES:
            ranges += [(start, _CHUNK_BYTES) for start in range(0, size, _CHUNK_BYTES)]
        spans = ((start, min(start + length, size)) for start, length in ranges)
        return all(read(one, *span) == read(other, *span) for span in spans)

    found: dict[str, str] = {}
    for group in groups:
        distinct: list[str] = []
        for name in group:
            match = next((other for other in distinct if equal(tensors[name], tensors[other])), None)
            if match is None:
                distinct.append(name)
            else:
                found[name] = match
    return found


def _layout(source: TensorSource) -> object:
    """Return the shapes of the stored parts of a tensor, and how they are joined."""
    if isinstance(source.view, Concatenation):
        return source.view.dim, [_layout(piece) for piece in source.view.pieces]
    return source.shape
