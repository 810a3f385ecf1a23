"""Objects that are larger than any of their kind are refused before they are read, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eigenmerge.core.cache.alignments import read_alignment
from eigenmerge.core.cache.parts import read_record, record_key
from eigenmerge.core.cache.run_folder import RUN_NAME, run_object_key
from eigenmerge.core.cache.runs import read_run
from eigenmerge.core.cache.spectra.reader import verify_spectrum
from eigenmerge.core.cache.spectra.table_file import read_run_table
from eigenmerge.core.coordination.claims import ClaimWatcher, is_claim, read_claim
from eigenmerge.core.errors import CorruptObjectError, EigenmergeError, ObjectNotFoundError
from eigenmerge.core.formats.file_names import INDEX_NAME, MANIFEST_NAME
from eigenmerge.core.output.read_manifest import read_manifest
from eigenmerge.core.publishing.publication import LATEST, read_publication
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.storage.checkpoints.file_version import observe_small_file, read_unchanged
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.store import LARGEST_SMALL_BYTES, Store

from ...conftest import S3Root

HUGE = 2**42  # sparse: reading it would fail
HASH = "a" * 64
PART = f"parts/{HASH}.safetensors"


def check(store: Store) -> None:
    for size in (0, 1, 9, 10):
        store.write("a/object", b"x" * size)
        assert store.read("a/object", 10) == b"x" * size
    store.write("a/object", b"x" * 11)
    with pytest.raises(CorruptObjectError, match="object: 11 bytes, expected at most 10"):
        store.read("a/object", 10)
    with pytest.raises(ObjectNotFoundError):
        store.read("a/other", 10)
    assert not store.replace("a/object", b"new", b"x" * 10)  # the beginning is what was expected
    assert store.replace("a/object", b"new", b"x" * 11) and store.read("a/object") == b"new"


def test_on_a_disk(tmp_path: Path) -> None:
    check(Store(str(tmp_path)))
    make_huge(tmp_path / "huge")
    with pytest.raises(CorruptObjectError, match=f"huge: {HUGE} bytes, expected at most {LARGEST_SMALL_BYTES}"):
        Store(str(tmp_path)).read("huge")


def test_in_memory() -> None:
    check(Store("memory://read-limit"))


def test_on_s3(s3_root: S3Root) -> None:
    check(Store(s3_root.uri, s3_root.storage_options))


def make_huge(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(HUGE)


READERS: dict[str, tuple[str, Callable[[Store], object]]] = {
    "record": (record_key(PART), lambda store: read_record(store, PART)),
    "run": (run_object_key(HASH, RUN_NAME), lambda store: read_run(store, HASH)),
    "alignment": ("alignments/a.json", lambda store: read_alignment(store, "alignments/a.json")),
    "spectrum": ("spectra/a.arrow", lambda store: verify_spectrum(store, "spectra/a.arrow")),
    "table": ("parts/a.arrow", lambda store: list(read_run_table(store, "parts/a.arrow"))),
    "manifest": (MANIFEST_NAME, read_manifest),
    "pointer": (LATEST, read_publication),
    "recipe": ("recipe.yml", lambda store: read_recipe(f"file://{store.root_uri}/recipe.yml")),
    "local recipe": ("recipe.yml", lambda store: read_recipe(Path(store.root_uri, "recipe.yml"))),
    "index": (INDEX_NAME, lambda store: list_model(store.root_uri, None)),
    "side file": ("tokenizer.json", lambda store: observe_small_file(f"{store.root_uri}/tokenizer.json", None)),
    "side file later": ("a.txt", lambda store: read_unchanged(f"{store.root_uri}/a.txt", None, None)),
}


@pytest.mark.parametrize("kind", READERS)
def test_nothing_of_a_huge_object_is_read(kind: str, tmp_path: Path) -> None:
    key, read = READERS[kind]
    make_huge(tmp_path / key)
    with pytest.raises(EigenmergeError):
        read(Store(str(tmp_path)))


def test_a_huge_claim_is_no_claim(tmp_path: Path) -> None:
    """Any process may take it, as any other damaged claim."""
    store, key = Store(str(tmp_path)), "claims/a.json"
    make_huge(tmp_path / key)
    assert not is_claim(read_claim(store, key))
    claim = ClaimWatcher(store, key).acquire()
    assert claim is not None and is_claim(store.read(key))
    claim.release()
