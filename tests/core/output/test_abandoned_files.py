"""What killed writers leave in a destination or store is removed by the next run or `cache gc`, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eigenmerge.core.cache.store_marker import mark_store
from eigenmerge.core.output.destination import clear_for_writing
from eigenmerge.core.planning.plan import SideFile
from eigenmerge.core.steps import collect_garbage as garbage
from eigenmerge.core.storage.backends.local_backend import LocalWriter
from eigenmerge.core.storage.backends.s3_backend import S3Backend
from eigenmerge.core.storage.store import Store

from ...conftest import S3Root
from .examples import make_checkpoint, norm, small_plan

HALF = ".eigenmerge-0123456789abcdef.partial"
TEMPLATE = "additional_chat_templates/tool.jinja"
PLAN = replace(small_plan(), side_files=(SideFile(TEMPLATE, None, b"x"),))


def uploads(backend: S3Backend, keys: list[str]) -> None:
    for key in keys:
        name = {"Key": backend.object_key(key), "UploadId": ""}
        name["UploadId"] = backend.call("create_multipart_upload", Key=name["Key"])["UploadId"]
        backend.call("upload_part", **name, PartNumber=1, Body=b"half")


def unfinished(backend: S3Backend) -> list[str]:
    found = backend.call("list_multipart_uploads", Prefix=backend.object_key("")).get("Uploads", [])
    return sorted(upload["Key"].removeprefix(backend.object_key("")) for upload in found)


def test_local_files(tmp_path: Path) -> None:
    foreign = [".eigenmerge-0123.partial", "model.partial", f"experiments/{HALF}", f"experiments/deep/{HALF}"]
    for name in [HALF, f"additional_chat_templates/{HALF}", *foreign]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    active = LocalWriter(tmp_path / "model.safetensors")
    clear_for_writing(Store(str(tmp_path)), PLAN)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*foreign, active._temporary.name}
    active.abort()


def test_uploads_to_a_destination(s3_root: S3Root) -> None:
    store = Store(s3_root.uri, s3_root.storage_options)
    make_checkpoint(small_plan([[norm("a")]], [[norm("b")]], run_key="0" * 64)).write(store)
    backend = store.backend
    assert isinstance(backend, S3Backend)
    of_the_last = "model-00002-of-00002.safetensors"
    ours = [PLAN.files[0].name, of_the_last, "README.md", TEMPLATE]
    foreign = ["data.tar", "model-00001-of-00009.safetensors.bak", f"sub/{PLAN.files[0].name}"]
    uploads(backend, [*ours, *foreign])
    clear_for_writing(store, PLAN)
    assert unfinished(backend) == sorted(foreign)


def test_uploads_to_a_store(s3_root: S3Root, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(s3_root.uri, s3_root.storage_options)
    mark_store(store)
    backend = store.backend
    assert isinstance(backend, S3Backend)
    ours, foreign = f"parts/{'a' * 64}.safetensors", ["parts/data.bin", f"mine/{'a' * 64}.safetensors"]
    uploads(backend, [ours, *foreign])
    assert garbage.collect_garbage(store).num_abandoned == 0, "an upload of today may be active"
    monkeypatch.setattr(garbage, "_SURELY_ABANDONED_SECONDS", 0.0)
    assert garbage.collect_garbage(store).num_abandoned == 1
    assert unfinished(backend) == sorted(foreign)
