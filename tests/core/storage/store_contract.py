"""The behavior that every backend of `Store` must have, as a test class to subclass."""

from __future__ import annotations

import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError, StoreError
from eigenmerge.core.storage.store import Store, locate_object

ESCAPES = [
    "",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "..\\x",
    "C:/x",
    "~/x",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "s3://other/x",
    "a::b",
    "a?versionId=1",
    "a" * 300,
    "b/" * 600 + "b",
    "\ud800",
]


def keys(store: Store, prefix: str = "", *, recursive: bool = True) -> list[str]:
    return sorted(info.key for info in store.list(prefix, recursive=recursive))


def through_pickle(store: Store) -> Store:
    return pickle.loads(pickle.dumps(store))


def exists_or_refused(store: Store, key: str) -> bool:
    try:
        return store.exists(key)
    except StoreError:
        return False


class StoreContract:
    """Tests that every backend passes. A subclass gives the fixture `store`, an empty store.

    exclusive_create : False where `create` checks and then writes, so that simultaneous writers may both succeed
    """

    exclusive_create = True

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    def test_a_written_object_is_read_back(self, store: Store) -> None:
        store.write("a/b.bin", b"hello")
        assert store.read("a/b.bin") == b"hello"
        assert store.exists("a/b.bin")
        assert store.info("a/b.bin").size == 5

    def test_an_object_may_be_empty(self, store: Store) -> None:
        store.write("empty", b"")
        assert store.read("empty") == b""
        assert store.read_range("empty", 0, 0) == b""
        assert store.info("empty").size == 0

    def test_writing_again_replaces_the_object(self, store: Store) -> None:
        store.write("x", b"a longer first version")
        before = store.info("x")
        store.write("x", b"second")
        assert store.read("x") == b"second"
        assert store.info("x").etag != before.etag

    def test_every_kind_of_buffer_can_be_written(self, store: Store) -> None:
        for data in (b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"abcd").cast("i")):
            store.write("buffer", data)
            assert store.read("buffer") == b"abcd"

    def test_ranges(self, store: Store) -> None:
        content = bytes(range(256)) * 10
        store.write("r", content)
        assert store.read_range("r", 3, 300) == content[3:300]
        assert store.read_range("r", len(content) - 1, len(content)) == content[-1:]
        assert store.read_range("r", 7, 7) == b""

    @pytest.mark.parametrize("bounds", [(5, 11), (10, 11), (500, 600)])
    def test_a_range_beyond_the_end_is_an_error(self, store: Store, bounds: tuple[int, int]) -> None:
        store.write("short", b"0123456789")
        with pytest.raises(CorruptObjectError, match="10 bytes"):
            store.read_range("short", *bounds)

    def test_an_error_names_the_missing_object(self, store: Store) -> None:
        assert not store.exists("no/such.bin")
        for action in (store.read, store.info, lambda key: store.read_range(key, 0, 5)):
            with pytest.raises(ObjectNotFoundError, match=r"no/such\.bin"):
                action("no/such.bin")

    def test_a_folder_is_not_an_object(self, store: Store) -> None:
        store.write("folder/object", b"1")
        assert not exists_or_refused(store, "folder")

    @pytest.mark.parametrize("key", ESCAPES, ids=lambda key: repr(key)[:20])
    def test_names_that_leave_the_root_are_refused(self, store: Store, key: str) -> None:
        for action in (
            store.read,
            store.info,
            store.exists,
            store.uri,
            store.local_path,
            lambda key: store.write(key, b""),
            lambda key: store.create(key, b""),
            lambda key: store.delete([key]),
            lambda key: store.read_range(key, 0, 1),
            lambda key: store.open_write(key).__enter__(),
        ):
            with pytest.raises(StoreError, match="refused"):
                action(key)

    def test_unusual_names(self, store: Store) -> None:
        odd = ["a b.txt", "ü/ß.json", "a*b?c[d]", "100%", "x@y+z", "..hidden", "a#b", "%2e%2e"]
        for key in odd:
            store.write(key, key.encode())
        assert keys(store) == sorted(odd)
        assert [store.read(key) for key in odd] == [key.encode() for key in odd]
        store.delete(odd)
        assert keys(store) == []

    def test_an_empty_folder_lists_nothing(self, store: Store) -> None:
        assert keys(store) == []
        assert keys(store, "no/such/") == []

    def test_listing_gives_keys_sizes_and_times(self, store: Store) -> None:
        for number in range(3):
            store.write(f"p/{number}", b"x" * number)
        store.write("p/deep/er", b"1234")
        store.write("q", b"5")
        assert keys(store) == ["p/0", "p/1", "p/2", "p/deep/er", "q"]
        assert keys(store, "p") == keys(store, "p/") == ["p/0", "p/1", "p/2", "p/deep/er"]
        assert keys(store, "p", recursive=False) == ["p/0", "p/1", "p/2"]
        assert keys(store, recursive=False) == ["q"]
        listed = {info.key: info for info in store.list()}
        assert [listed[f"p/{number}"].size for number in range(3)] == [0, 1, 2]
        assert all(info.modified > 1_600_000_000 for info in listed.values())
        assert listed["q"].etag == store.info("q").etag != ""

    def test_an_object_is_not_a_folder(self, store: Store) -> None:
        store.write("x", b"1")
        assert keys(store, "x") == keys(store, "x/") == []

    def test_a_folder_is_not_a_name_prefix(self, store: Store) -> None:
        store.write("ab/x", b"1")
        store.write("abc/x", b"2")
        assert keys(store, "ab") == ["ab/x"]

    def test_writes_of_other_processes_are_visible(self, store: Store) -> None:
        other = through_pickle(store)
        assert keys(store) == []
        other.write("new", b"1")
        assert keys(store) == ["new"]
        assert store.info("new").size == 1
        other.write("new", b"22")
        assert store.info("new").size == 2
        other.delete(["new"])
        assert keys(store) == []
        assert not store.exists("new")

    def test_deleting_many_and_missing_objects(self, store: Store) -> None:
        names = [f"d/{number}" for number in range(20)]
        for name in names:
            store.write(name, b"x")
        store.write("kept", b"x")
        store.delete([*names, "never/was"])
        assert keys(store) == ["kept"]
        store.delete([])

    def test_chunks_are_counted_and_hashed(self, store: Store) -> None:
        pieces = [b"a" * 1000, memoryview(b"b" * 10), bytearray(b"c"), b""]
        with store.open_write("w/x") as writer:
            for piece in pieces:
                writer.write(piece)
        content = b"".join(map(bytes, pieces))
        assert store.read("w/x") == content
        assert writer.num_bytes == len(content)
        assert writer.sha256 == hashlib.sha256(content).hexdigest()

    def test_chunks_are_invisible_before_the_end(self, store: Store) -> None:
        with store.open_write("w") as writer:
            writer.write(b"x" * 100)
            assert not store.exists("w")
            assert keys(store) == []
        assert keys(store) == ["w"]

    def test_an_exception_leaves_no_object(self, store: Store) -> None:
        store.write("old", b"old")
        for key in ("new", "old"):
            with pytest.raises(KeyError, match="mine"), store.open_write(key) as writer:
                writer.write(b"x" * 100)
                raise KeyError("mine")
        assert keys(store) == ["old"]
        assert store.read("old") == b"old"
        local = store.local_path("old")
        if local is not None:
            assert [path.name for path in local.parent.iterdir()] == ["old"]

    def test_an_exception_of_the_caller_is_unchanged(self, store: Store) -> None:
        with pytest.raises(FileNotFoundError, match="elsewhere") as caught, store.open_write("x"):
            raise FileNotFoundError("elsewhere")
        assert not isinstance(caught.value, StoreError)

    def test_an_object_larger_than_a_part(self, store: Store) -> None:
        block = bytes(range(256)) * 4096  # 1 MiB
        with store.open_write("large") as writer:
            for _ in range(37):
                writer.write(block)
        assert store.info("large").size == 37 * len(block) == writer.num_bytes
        start = 16 * len(block) - 5
        assert store.read_range("large", start, start + 10) == (block * 2)[len(block) - 5 : len(block) + 5]
        assert hashlib.sha256(store.read("large")).hexdigest() == writer.sha256

    def test_an_exception_in_a_large_object_leaves_no_object(self, store: Store) -> None:
        with pytest.raises(KeyError), store.open_write("large") as writer:
            writer.write(bytes(40 * 2**20))
            raise KeyError
        assert keys(store) == []
        assert store.remove_abandoned() == 0

    def test_create_does_not_replace(self, store: Store) -> None:
        assert store.create("claims/a", b"me")
        assert not store.create("claims/a", b"you")
        assert store.read("claims/a") == b"me"
        store.delete(["claims/a"])
        assert store.create("claims/a", b"you")

    def test_create_succeeds_for_one_of_many_writers(self, store: Store) -> None:
        for round_number in range(3):
            start = threading.Barrier(8)

            def claim(name: bytes, key: str = f"claims/{round_number}", start: threading.Barrier = start) -> bool:
                own = through_pickle(store)
                start.wait()
                return own.create(key, name)

            names = [b"worker %d" % number for number in range(8)]
            with ThreadPoolExecutor(8) as pool:
                won = list(pool.map(claim, names))
            assert sum(won) == 1 or (won.count(True) > 1 and not self.exclusive_create)
            winners = [name for name, success in zip(names, won, strict=True) if success]
            assert store.read(f"claims/{round_number}") in winners

    def test_replace_needs_the_expected_content(self, store: Store) -> None:
        store.write("pointer", b"one")
        assert not store.replace("pointer", b"three", b"two")
        assert store.read("pointer") == b"one"
        assert store.replace("pointer", b"two", b"one")
        assert store.read("pointer") == b"two"
        with pytest.raises(ObjectNotFoundError):
            store.replace("absent", b"x", b"y")

    def test_probing_conditional_writes_leaves_no_object(self, store: Store) -> None:
        assert store.probe_conditional_writes()
        assert keys(store) == []

    def test_create_without_conditional_writes(self, store: Store) -> None:
        plain = Store(store.root_uri, store._options, conditional_writes=False)
        assert plain.create("x", b"1")
        assert not through_pickle(plain).create("x", b"2")
        assert plain.read("x") == b"1"

    def test_pickling_keeps_address_and_options(self, store: Store) -> None:
        store.write("x", b"1")
        again = through_pickle(store)
        assert again == store
        assert again.read("x") == b"1"
        assert again.root_uri == store.root_uri

    def test_an_object_is_located_by_its_address(self, store: Store) -> None:
        store.write("deep/x.bin", b"1")
        found, key = locate_object(store.uri("deep/x.bin"), store._options)
        assert key == "x.bin"
        assert found.read(key) == b"1"

    def test_local_path(self, store: Store) -> None:
        store.write("deep/x.bin", b"1")
        path = store.local_path("deep/x.bin")
        assert store.is_local == (path is not None)
        if path is not None:
            assert path.read_bytes() == b"1"
