"""The marker of a store: who writes it, how a store without one is recognized, and what is suggested instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eigenmerge.core.cache.store_marker import mark_store, require_store
from eigenmerge.core.errors import NoStoreError, StoreError
from eigenmerge.core.formats.store_folders import STORE_MARKER
from eigenmerge.core.storage.store import Store

from ..store_keys import long_key
from .examples import matrix, real_shard, write_part

Place = Callable[[str], Store]


def keys(store: Store) -> set[str]:
    return {info.key for info in store.list("")}


def test_a_store_is_marked_once(place: Place) -> None:
    store = place("store")
    mark_store(store)
    written = store.info(STORE_MARKER).etag
    mark_store(store)
    require_store(store)
    assert keys(store) == {STORE_MARKER} and store.info(STORE_MARKER).etag == written


def test_a_store_of_an_earlier_version_is_recognized_and_not_written(place: Place) -> None:
    store = place("store")
    write_part(store, real_shard(0, matrix("w")), b"header--data")
    before = keys(store)
    require_store(store)
    assert keys(store) == before


@pytest.mark.parametrize(
    "key",
    ["parts/model.safetensors", "runs/experiment/run.json", long_key("parts/x.json"), long_key("runs/a/run.json")],
)
def test_folders_with_the_names_of_a_store_are_no_store(place: Place, key: str) -> None:
    store = place("work")
    store.write(key, b'{"loss": 0.1}')
    with pytest.raises(NoStoreError, match="no store here; give the place") as refused:
        require_store(store)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("content", [b'{"eigenmerge_store": 2}', b"{}", b"", b"\xff"])
def test_the_marker_of_a_later_version_is_refused(place: Place, content: bytes) -> None:
    store = place("store")
    store.write(STORE_MARKER, content)
    for action in (mark_store, require_store):
        with pytest.raises(StoreError, match="not the marker of a store that this version reads"):
            action(store)
    assert store.read(STORE_MARKER) == content


@pytest.mark.parametrize("marked", [True, False])
def test_a_store_above_or_below_is_suggested(place: Place, marked: bool) -> None:
    store = place("a/b/store")
    if marked:
        mark_store(store)
    else:
        write_part(store, real_shard(0, matrix("w")), b"header--data")
        store.write(long_key("runs/a/notes.txt"), b"")  # a local search looks for this folder
    for wrong in (place("a"), place("a/b"), place("a/b/store/parts"), place("a/b/store/x/y")):
        with pytest.raises(NoStoreError) as refused:
            require_store(wrong)
        assert f"did you mean {store.display('')}?" in str(refused.value), wrong


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError):
        require_store(Store(str(tmp_path / "file")))
