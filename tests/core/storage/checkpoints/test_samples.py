"""Samples of weight files: of every tensor on a local disk, in few requests elsewhere."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.formats.safetensors_header import SafetensorsHeader, build_header, parse_header
from eigenmerge.core.storage.checkpoints.samples import digest_file, local_ranges, remote_ranges
from eigenmerge.core.storage.store import Store


def header_of(lengths: list[int]) -> tuple[SafetensorsHeader, int]:
    """Return a header of tensors of these lengths in bytes, and its own length."""
    data = build_header({f"t{index:06d}": ("U8", (length,)) for index, length in enumerate(lengths)})
    return parse_header(data, len(data) + sum(lengths), "x"), len(data)


@pytest.mark.parametrize("lengths", [[10**9], [10**8] * 24, [1, 0, 10**7, 3], [5_000] * 1200, [10**6] * 600])
def test_every_tensor_is_sampled_on_a_local_disk(lengths: list[int]) -> None:
    header, _ = header_of(lengths)
    ranges = local_ranges(header)
    assert all(first[1] < second[0] for first, second in pairwise(ranges))
    for entry in header.tensors.values():
        sampled = sum(max(0, min(stop, entry.stop) - max(start, entry.start)) for start, stop in ranges)
        assert sampled >= min(entry.stop - entry.start, 4096)
        assert sampled <= max(4 * 4096, entry.stop - entry.start if len(lengths) > 1000 else 0)


@pytest.mark.parametrize("lengths", [[10**9], [10**8] * 24, [1, 0, 10**7, 3], [5_000] * 4000, []])
def test_few_requests_elsewhere(lengths: list[int]) -> None:
    header, _ = header_of(lengths)
    ranges = remote_ranges(header)
    assert len(ranges) <= 16 and sum(stop - start for start, stop in ranges) <= 16 * 8192
    if 0 < len(lengths) <= 32:
        for entry in header.tensors.values():
            assert entry.start == entry.stop or any(start < entry.stop and entry.start < stop for start, stop in ranges)


def test_a_digest_depends_on_samples_and_header(tmp_path: Path) -> None:
    store, (header, start) = Store(str(tmp_path)), header_of([100_000, 50])
    content = bytearray(build_header({"t000000": ("U8", (100_000,)), "t000001": ("U8", (50,))}) + bytes(100_050))

    def digest(key: str, complete: bool = False) -> str:
        store.write(key, bytes(content))
        return digest_file(store, key, header, "", complete=complete)

    sampled, complete = digest("a"), digest("a", complete=True)
    assert digest("b") == sampled and digest("b", complete=True) == complete != sampled
    content[start + 5000] = 1  # between two samples
    assert digest("a") == sampled and digest("a", complete=True) != complete
    content[start + 100_049] = 1
    assert digest("a") != sampled


def test_a_file_that_was_truncated_meanwhile(tmp_path: Path) -> None:
    header, start = header_of([100_000])
    (tmp_path / "x").write_bytes(bytes(start + 50_000))
    with pytest.raises(CorruptObjectError, match="too short"):
        digest_file(Store(str(tmp_path)), "x", header, "", complete=False)
