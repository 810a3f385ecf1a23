"""Hashes: known values, which keys of existing stores depend on, and independence from order and chunks."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.formats.digest import hash_bytes, hash_chunks, hash_json, hash_text


def test_known_values() -> None:
    assert hash_text("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_text("ä") == hashlib.sha256("ä".encode()).hexdigest()
    content = {"b": [1, 2.5, None], "a": "ä"}
    assert hash_json(content) == hashlib.sha256(b'{"a":"\\u00e4","b":[1,2.5,null]}').hexdigest()


def test_the_order_of_mappings_is_ignored_and_that_of_lists_is_not() -> None:
    assert hash_json({"a": 1, "b": {"c": 2, "d": 3}}) == hash_json({"b": {"d": 3, "c": 2}, "a": 1})
    assert hash_json([1, 2]) != hash_json([2, 1])
    assert hash_json((1, 2)) == hash_json([1, 2])


@given(st.lists(st.binary(max_size=50)))
def test_chunks_hash_as_their_concatenation(chunks: list[bytes]) -> None:
    assert hash_chunks(chunks) == hash_bytes(b"".join(chunks))


def test_every_kind_of_buffer() -> None:
    data = bytes(range(64))
    array = np.frombuffer(data, dtype=np.float64)
    for buffer in (data, bytearray(data), memoryview(data).cast("i"), array, array.data):
        assert hash_bytes(buffer) == hashlib.sha256(data).hexdigest()
