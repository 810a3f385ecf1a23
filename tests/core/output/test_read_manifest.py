"""The manifest read back: what it contains, and one clear line for every damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.formats.file_names import MANIFEST_NAME
from eigenmerge.core.output.manifest import ManifestWriter
from eigenmerge.core.output.read_manifest import manifest_of, parse_manifest, read_manifest
from eigenmerge.core.storage.store import Store

from .examples import RUN_KEY, adapter, buffer, fused, make_checkpoint, norm, small_plan, weight

PLAN = small_plan([[weight("w"), norm("n")], [buffer("b")]], [[fused("attn.qkv.weight")], [adapter("v")]])
CHECKPOINT = make_checkpoint(PLAN)


def content(**changes: Any) -> dict[str, Any]:
    hashes: dict[str, str | None] = {PLAN.files[0].name: "0" * 64, "config.json": "1" * 64}
    return json.loads(ManifestWriter(PLAN, CHECKPOINT.reports).encode(hashes)) | changes


def write(store: Store, data: object) -> Store:
    store.write(MANIFEST_NAME, data if isinstance(data, bytes) else json.dumps(data).encode())
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_what_was_written_is_read(place: Callable[[str], Store]) -> None:
    found = read_manifest(write(place("out"), content()))
    assert (found.format, found.run_key, found.recipe) == (1, RUN_KEY, dict(PLAN.recipe))
    assert found.base is not None and found.base.fingerprint == "fingerprint of org/base"
    assert [expert.name for expert in found.experts] == ["org/a", "org/b"]
    assert [(file.name, file.num_bytes, file.sha256) for file in found.files] == [
        (PLAN.files[0].name, PLAN.files[0].num_bytes, "0" * 64),
        (PLAN.files[1].name, PLAN.files[1].num_bytes, None),
    ]
    assert found.side_files == {"config.json": "1" * 64}
    assert [(row.name, tuple(row.shape), row.dtype, row.action) for row in found.tensors] == [
        ("w", (4, 3), "F32", "merge"),
        ("n", (3,), "F32", "mean"),
        ("b", (2,), "I64", "copy"),
        ("attn.qkv.weight", (4, 3), "F32", "merge"),
        ("v", (4, 3), "F32", "merge"),
    ]


def test_names_in_the_file(store: Store) -> None:
    first, *_, last = read_manifest(write(store, content())).tensors
    assert first.stored_names == ["w"]
    assert last.stored_names == ["base_model.model.w.lora_A.weight", "base_model.model.w.lora_B.weight"]


def test_keys_of_a_later_version_are_ignored(store: Store) -> None:
    later = content(added="later")
    later["tensors"][0]["added"] = [1, 2]
    assert read_manifest(write(store, later)) == read_manifest(write(store, content()))


def test_a_directory_without_a_manifest(store: Store) -> None:
    with pytest.raises(CheckpointError, match=f"has no {MANIFEST_NAME}"):
        read_manifest(store)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_content_that_is_not_a_json_object(store: Store, data: bytes) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_manifest(write(store, data))
    assert MANIFEST_NAME in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [None, 0, 2, "1"])
def test_another_format(store: Store, number: object) -> None:
    with pytest.raises(CheckpointError, match=rf"{MANIFEST_NAME}: format is {number!r}, this version reads 1"):
        read_manifest(write(store, content(format=number)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run_key",), None),
        (("experts", 1, "fingerprint"), 3),
        (("files", 0, "num_bytes"), -1),
        (("files", 0, "num_bytes"), "12"),
        (("files", 1, "sha256"), "A" * 64),
        (("files", 1, "sha256"), "0" * 63),
        (("tensors", 2, "sha256"), None),
        (("tensors", 2, "shape"), [1.5]),
        (("tensors", 4, "stored_as"), "w"),
        (("side_files", "config.json"), None),
    ],
)
def test_a_damaged_value_is_located(store: Store, path: tuple[str | int, ...], value: object) -> None:
    data: Any = content()
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(CheckpointError) as raised:
        read_manifest(write(store, data))
    assert "is damaged" in str(raised.value) and ".".join(map(str, path)) in str(raised.value)


@pytest.mark.parametrize("name", ["run_key", "recipe", "base", "experts", "files", "side_files", "tensors"])
def test_a_missing_key_is_named(store: Store, name: str) -> None:
    data = content()
    del data[name]
    with pytest.raises(CheckpointError, match=f"{name}: Field required"):
        read_manifest(write(store, data))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(data: bytes) -> None:
    store = Store("memory://read-manifest")
    with pytest.raises(CheckpointError) as raised:
        read_manifest(write(store, data))
    assert "\n" not in str(raised.value)


def test_what_has_just_been_written_is_what_is_read() -> None:
    writer = ManifestWriter(PLAN, CHECKPOINT.reports)
    hashes: dict[str, str | None] = {PLAN.files[0].name: "0" * 64, "config.json": "1" * 64}
    data = writer.encode(hashes)
    assert manifest_of(writer.content(hashes), data, "m") == parse_manifest(data, "m")
