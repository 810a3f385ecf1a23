"""A part whose bytes changed, although size and time did not, is found while it is joined and computed again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.output.read_manifest import read_manifest
from eigenmerge.core.output.verify_files import verify_files
from eigenmerge.core.storage.assembly.part_check import DamagedPartError, PartCheck, TensorBytes
from eigenmerge.core.storage.store import Store


def rot(path: Path) -> None:
    """Change one byte of the data and keep the time, as a failing disk does."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("remote", [False, True])
def test_a_part_that_changed_under_an_equal_time_is_computed_again(
    make_models: Any, pipeline: Any, tmp_path: Path, s3_root: Any, remote: bool
) -> None:
    models = make_models(num_experts=2, layers=1)
    keys = {"storage_options": {"s3": s3_root.storage_options}} if remote else {}
    recipe = models.write_recipe("average", output={"max_shard_size": "40KB"}, **keys)
    pipeline(recipe, tmp_path / "a")
    parts = sorted((tmp_path / "store/parts").glob("*.safetensors"))
    for part in parts[:2]:
        rot(part)
    place = f"{s3_root.uri}/b" if remote else str(tmp_path / "b")
    result = pipeline(recipe, place)
    assert (result.shards_done, result.shards_reused) == (2, len(parts) - 2)
    again = Store(place, s3_root.storage_options if remote else None)
    for path in (tmp_path / "a").iterdir():
        assert again.read(path.name) == path.read_bytes()


def test_on_one_s3_server_the_copy_is_compared_afterwards(make_models: Any, pipeline: Any, s3_root: Any) -> None:
    """The server copies ranges of the parts; a part replaced within the same etag is simulated by its record."""
    from eigenmerge.core.cache import parts

    models = make_models(num_experts=2, layers=1)
    recipe = models.write_recipe("average", storage_options=s3_root.storage_options)
    place, other = f"{s3_root.uri}/store", f"{s3_root.uri}/b"
    pipeline(recipe, f"{s3_root.uri}/a", store=place)
    store = Store(place, s3_root.storage_options)
    key = next(info.key for info in store.list("parts/") if info.key.endswith(".safetensors"))
    data = bytearray(store.read(key))
    data[-3] ^= 0x10
    report = parts.read_record(store, key)
    store.write(key, data)
    from dataclasses import replace

    parts.write_record(store, replace(report, etag=store.info(key).etag))
    assert pipeline(recipe, other, store=place).shards_done == 1
    results = [Store(uri, s3_root.storage_options).read("model.safetensors") for uri in (f"{s3_root.uri}/a", other)]
    assert results[0] == results[1]


def test_verify_compares_tensors_of_a_file_that_has_its_hash(models: Any, pipeline: Any, tmp_path: Path) -> None:
    """The checkpoint of an earlier version with a damaged part: the hash of the file is that of the damaged bytes."""
    import hashlib
    import json

    out = tmp_path / "out"
    pipeline(models.recipe("average"), out)
    rot(out / "model.safetensors")
    manifest = json.loads((out / "eigenmerge_manifest.json").read_text())
    manifest["files"][0]["sha256"] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    (out / "eigenmerge_manifest.json").write_text(json.dumps(manifest))
    store = Store(str(out))
    problems = [problem for check in verify_files(store, read_manifest(store))[0] for problem in check.problems]
    assert len(problems) == 1 and "fails its sha256" in problems[0]


def tensors(*contents: bytes) -> list[TensorBytes]:
    import hashlib

    return [TensorBytes(f"t{n}", len(data), hashlib.sha256(data).hexdigest()) for n, data in enumerate(contents)]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_of_any_size_and_empty_tensors(chunk: int) -> None:
    contents = (b"", b"abc", b"", b"de", b"")
    data = b"".join(contents)
    check = PartCheck("part", tensors(*contents))
    for start in range(0, len(data), chunk):
        check.update(data[start : start + chunk])
    check.finish()
    for wrong, message in ((b"abXde", "'t1' has other bytes"), (b"abcd", "ends within"), (b"abcdef", "more bytes")):
        check = PartCheck("part", tensors(*contents))
        with pytest.raises(DamagedPartError, match=message):
            check.update(wrong)
            check.finish()
