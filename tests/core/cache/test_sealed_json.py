"""Sealed JSON comes back as it was written; any other content is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.cache.sealed_json import read_sealed_json, write_sealed_json
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.store import Store

KEY = "alignments/a.json"
CONTENT = {"format": 1, "values": {"b": 1.5, "a": [1, None, "ß"]}, "pair": (1, 2)}


def test_round_trip(place: Callable[[str], Store]) -> None:
    store = place("store")
    write_sealed_json(store, KEY, CONTENT)
    assert read_sealed_json(store, KEY) == {**CONTENT, "pair": [1, 2]}
    assert json.loads(store.read(KEY))["values"] == CONTENT["values"], "any JSON tool reads it"


def test_missing(place: Callable[[str], Store]) -> None:
    with pytest.raises(ObjectNotFoundError):
        read_sealed_json(place("store"), KEY)


def test_layout_and_order_of_keys_do_not_matter(tmp_path) -> None:
    """People may reformat the file: the checksum is of the content."""
    store = Store(str(tmp_path))
    write_sealed_json(store, KEY, CONTENT)
    content = json.loads(store.read(KEY))
    store.write(KEY, json.dumps(dict(reversed(content.items()))).encode())
    assert read_sealed_json(store, KEY) == {**CONTENT, "pair": [1, 2]}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'"x"', b"\xff", b'{"sha256": 1}', b"[" * 100_000])
def test_foreign_content(place: Callable[[str], Store], content: bytes) -> None:
    store = place("store")
    store.write(KEY, content)
    with pytest.raises(CorruptObjectError, match=r"a\.json"):
        read_sealed_json(store, KEY)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(0, 7), st.booleans())
def test_changed_and_truncated(position: int, bit: int, cut: bool) -> None:
    store = Store("memory://sealed-json")
    write_sealed_json(store, KEY, CONTENT)
    content = store.read(KEY)
    position %= len(content)
    damaged = content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]
    store.write(KEY, content[:position] if cut else damaged)
    try:
        found = read_sealed_json(store, KEY)
    except CorruptObjectError:
        return
    assert found == {**CONTENT, "pair": [1, 2]}, "only white space may change"
