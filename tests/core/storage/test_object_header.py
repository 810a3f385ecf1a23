"""Headers of stored files: read in one or two requests, with and without a known size."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eigenmerge.core.errors import CheckpointError, CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.formats.safetensors_header import build_header, parse_header
from eigenmerge.core.storage.object_header import read_header
from eigenmerge.core.storage.store import Store

from ...conftest import S3Root
from ...faulty_proxy import FaultyProxy

Place = Callable[[str], Store]


def file_of(num_tensors: int) -> bytes:
    tensors = {f"layers.{number}.{'x' * 80}.weight": ("F32", (2,)) for number in range(num_tensors)}
    return build_header(tensors, {"format": "pt"}) + bytes(8 * num_tensors)


@pytest.mark.parametrize("num_tensors", [0, 3, 1000])
def test_short_and_long_headers(place: Place, num_tensors: int) -> None:
    store, content = place("store"), file_of(num_tensors)
    store.write("x.safetensors", content)
    expected = parse_header(content, len(content), "x")
    assert read_header(store, "x.safetensors") == expected
    assert read_header(store, "x.safetensors", len(content)) == expected
    assert expected.file_size == len(content)


@pytest.mark.parametrize(("num_tensors", "num_requests"), [(3, 1), (1000, 2)])
def test_number_of_requests(faulty_s3: tuple[FaultyProxy, S3Root], num_tensors: int, num_requests: int) -> None:
    proxy, root = faulty_s3
    store, content = Store(root.uri, root.storage_options), file_of(num_tensors)
    store.write("x", content)
    for size in (None, len(content)):
        proxy.requests.clear()
        read_header(store, "x", size)
        assert len(proxy.requests) == num_requests


def test_errors_name_the_file(place: Place) -> None:
    store = place("store")
    store.write("damaged", file_of(1)[:-1])
    with pytest.raises(CheckpointError, match=r"damaged.*truncated"):
        read_header(store, "damaged")
    with pytest.raises(CorruptObjectError, match="damaged"):
        read_header(store, "damaged", 10**6)
    store.write("other", b"PK")
    with pytest.raises(CheckpointError, match=r"other is not a safetensors file"):
        read_header(store, "other")
    with pytest.raises(ObjectNotFoundError, match="none"):
        read_header(store, "none")
