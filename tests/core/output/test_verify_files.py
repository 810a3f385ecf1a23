"""Files of a checkpoint against its manifest: every damage is found, and the message names the file or tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from eigenmerge.core.formats.file_names import INDEX_NAME, MARKER_NAME
from eigenmerge.core.output.read_manifest import Manifest, read_manifest
from eigenmerge.core.output.verify_files import FileCheck, read_stored, verify_files
from eigenmerge.core.storage.store import Store

from .examples import Checkpoint, adapter, buffer, fused, make_checkpoint, norm, sha256, small_plan, weight

PLAN = small_plan([[weight("a"), norm("b")], [buffer("c")]], [[fused("attn.qkv.weight")], [adapter("w")]])
FIRST, SECOND = (file.name for file in PLAN.files)
SIDE_FILES = {"config.json": b"{}", "tokenizer.json": b'{"model": {}}'}
WHOLE = "the whole"  # name of the check of everything that no single file shows


@dataclass
class Written:
    """A checkpoint in a store."""

    store: Store
    checkpoint: Checkpoint

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.store)

    def checks(self) -> dict[str, FileCheck]:
        return {check.name: check for check in verify_files(self.store, self.manifest)[0]}

    def problems(self) -> dict[str, tuple[str, ...]]:
        """The problems of each file that has any."""
        return {name: check.problems for name, check in self.checks().items() if check.problems}

    def change(self, name: str, position: int) -> None:
        content = bytearray(self.store.read(name))
        content[position] ^= 1
        self.store.write(name, bytes(content))


def write(store: Store, *, with_file_hashes: bool = True) -> Written:
    checkpoint = make_checkpoint(PLAN)
    checkpoint.write(store, with_file_hashes=with_file_hashes, side_files=SIDE_FILES)
    return Written(store, checkpoint)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write(Store(str(tmp_path / "out")))


@pytest.mark.parametrize("with_file_hashes", [True, False])
def test_a_checkpoint_as_it_was_written(place: Callable[[str], Store], with_file_hashes: bool) -> None:
    written = write(place("out"), with_file_hashes=with_file_hashes)
    assert written.problems() == {}
    how = {name: check.how for name, check in written.checks().items()}
    weights = {FIRST: "sha256, and sha256 of 3 tensors", SECOND: "sha256, and sha256 of 2 tensors"}
    if not with_file_hashes:
        weights = {FIRST: "sha256 of 3 tensors", SECOND: "sha256 of 2 tensors"}
    sides = dict.fromkeys(SIDE_FILES, "sha256")
    assert {name: one for name, one in how.items() if name != WHOLE} == weights | sides


def test_the_stored_bytes_of_each_tensor(written: Written) -> None:
    manifest = written.manifest
    _, places = verify_files(written.store, manifest)
    for row in manifest.tensors:
        assert sha256(read_stored(written.store, places, row)) == row.sha256
    factors = manifest.tensors[-1]
    assert len(read_stored(written.store, places, factors)) == 2 * (4 + 3) * 4


@pytest.mark.parametrize("with_file_hashes", [True, False])
def test_a_changed_byte_names_its_tensor(tmp_path: Path, with_file_hashes: bool) -> None:
    written = write(Store(str(tmp_path / "out")), with_file_hashes=with_file_hashes)
    manifest = written.manifest
    _, places = verify_files(written.store, manifest)
    for row in manifest.tensors:
        (file, start, stop), *_ = places.ranges(row.stored_names)
        content = written.store.read(file)
        for position in (start, stop - 1):
            written.change(file, position)
            (found,) = written.problems().items()
            assert found[0] == file and found[1][-1] == f"tensor {row.name!r} fails its sha256"
            assert len(found[1]) == (2 if with_file_hashes else 1)
            written.store.write(file, content)


def test_a_changed_header(written: Written) -> None:
    written.store.write(FIRST, written.checkpoint.files[FIRST].replace(b'"F32"', b'"I32"', 1))
    (problem, *rest) = written.problems()[FIRST]
    assert problem.startswith("tensor ") and "I32" in problem and "F32" in problem
    assert len(rest) == 1, "the tensors' bytes are right, only the hash of the file is not"


def test_a_header_that_cannot_be_read(written: Written) -> None:
    written.change(FIRST, 7)  # the length of the header
    checks = written.checks()
    assert checks[FIRST].how == "header" and len(checks[FIRST].problems) == 1
    assert checks[WHOLE].problems == (), "the missing tensors follow from the header"


@pytest.mark.parametrize("name", [FIRST, SECOND, *SIDE_FILES])
def test_a_missing_file(place: Callable[[str], Store], name: str) -> None:
    written = write(place("out"))
    written.store.delete([name])
    assert written.problems() == {name: ("is missing",)}


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size(written: Written, change: int) -> None:
    content = written.checkpoint.files[FIRST]
    written.store.write(FIRST, content[:-1] if change < 0 else content + b"\0")
    (problem,) = written.problems()[FIRST]
    assert str(len(content)) in problem and str(len(content) + change) in problem


def test_an_intact_file_of_another_size(written: Written) -> None:
    other = written.checkpoint.files[SECOND]
    written.store.write(FIRST, other)
    (problem,) = written.problems()[FIRST]
    assert str(len(other)) in problem and str(len(written.checkpoint.files[FIRST])) in problem


@pytest.mark.parametrize("content", [b"", b"[]", b"{} "])
def test_a_changed_side_file(written: Written, content: bytes) -> None:
    written.store.write("config.json", content)
    assert list(written.problems()) == ["config.json"]


def test_a_merge_that_has_not_finished(written: Written) -> None:
    written.store.write(MARKER_NAME, b"{}")
    (problem,) = written.problems()[WHOLE]
    assert "not finished" in problem


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-00003-of-00003.safetensors", "x.safetensors"])
def test_weights_of_another_checkpoint(written: Written, name: str) -> None:
    written.store.write(name, b"x")
    (problem,) = written.problems()[WHOLE]
    assert problem.startswith(name)


def test_other_files_and_folders_are_of_no_interest(written: Written) -> None:
    for name in ("notes.txt", "sub/model.safetensors", "model.safetensors.txt", "optimizer.bin"):
        written.store.write(name, b"x")
    assert written.problems() == {}


def indices() -> Iterator[tuple[bytes, str]]:
    yield b"", INDEX_NAME
    yield b"[]", INDEX_NAME
    yield b"{}", "has no weight_map"
    yield b'{"weight_map": []}', "has no weight_map"
    yield b'{"weight_map": {}}', "6 tensors"
    renamed = dict.fromkeys("abc", FIRST) | dict.fromkeys(("attn.qkv.weight", "lora_A", "lora_B"), SECOND)
    yield json.dumps({"weight_map": renamed}).encode(), "4 tensors"


@pytest.mark.parametrize(("content", "words"), list(indices()))
def test_a_damaged_index(written: Written, content: bytes, words: str) -> None:
    written.store.write(INDEX_NAME, content)
    (problem,) = written.problems()[WHOLE]
    assert words in problem and INDEX_NAME in problem


def test_one_tensor_in_the_wrong_file(written: Written) -> None:
    index = json.loads(written.store.read(INDEX_NAME))
    index["weight_map"]["b"] = SECOND
    written.store.write(INDEX_NAME, json.dumps(index).encode())
    (problem,) = written.problems()[WHOLE]
    assert "1 tensors" in problem and "'b'" in problem


def test_a_missing_index(written: Written) -> None:
    written.store.delete([INDEX_NAME])
    assert written.problems()[WHOLE] == (f"{INDEX_NAME} is missing: the merge has not finished",)


def test_an_index_beside_one_file(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(small_plan([[norm("a")]]))
    store = Store(str(tmp_path))
    checkpoint.write(store)
    written = Written(store, checkpoint)
    assert written.problems() == {}
    store.write(INDEX_NAME, b'{"weight_map": {}}')
    (problem,) = written.problems()[WHOLE]
    assert INDEX_NAME in problem and "loaders prefer it" in problem


def test_tensors_that_only_the_manifest_or_only_the_file_has(written: Written) -> None:
    manifest = written.manifest
    row = manifest.tensors[0]
    fewer = manifest.model_copy(update={"tensors": manifest.tensors[1:]})
    checks = {check.name: check.problems for check in verify_files(written.store, fewer)[0]}
    assert checks[FIRST] == (f"tensor {row.name!r} is not in the manifest",)
    more = manifest.model_copy(update={"tensors": [*manifest.tensors, row.model_copy(update={"name": "x"})]})
    checks = {check.name: check.problems for check in verify_files(written.store, more)[0]}
    assert checks[WHOLE] == ("tensor 'x' is in none of the files",)


@pytest.mark.parametrize("update", [{"shape": [3, 4]}, {"dtype": "BF16"}])
def test_a_tensor_of_another_shape_or_dtype(written: Written, update: dict[str, object]) -> None:
    manifest = written.manifest
    changed = manifest.tensors[0].model_copy(update=update)
    found, _ = verify_files(written.store, manifest.model_copy(update={"tensors": [changed, *manifest.tensors[1:]]}))
    (problem,) = next(check.problems for check in found if check.name == FIRST)
    assert "'a' is F32 [4, 3]" in problem and f"{changed.dtype} {changed.shape}" in problem
