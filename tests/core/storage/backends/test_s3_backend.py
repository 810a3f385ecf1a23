"""S3 behind a failing proxy: transient faults are retried, other errors are raised at once, and requests are few."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from botocore.exceptions import ClientError

from eigenmerge.core.errors import CorruptObjectError, ObjectChangedError, ObjectNotFoundError, StoreError
from eigenmerge.core.listing import FileVersion
from eigenmerge.core.storage.assembly.assemble_file import assemble_file
from eigenmerge.core.storage.backends import s3_backend
from eigenmerge.core.storage.backends.s3_backend import S3Backend
from eigenmerge.core.storage.checkpoints.folder import open_folder
from eigenmerge.core.storage.checkpoints.list_model import _read_weight_file, list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.retries import RetryPolicy
from eigenmerge.core.storage.store import Store

from ....conftest import S3Root
from ....faulty_proxy import Faults, FaultyProxy
from ..conftest import tensors_of, write_model

QUICK = RetryPolicy(attempts=20, first_wait_seconds=0.01, longest_wait_seconds=0.1)
MIB = 2**20

Faulty = tuple[FaultyProxy, S3Root]


@pytest.fixture
def store(faulty_s3: Faulty) -> Store:
    _, root = faulty_s3
    return Store(root.uri, root.storage_options, retry=QUICK)


class TestFaults:
    @pytest.mark.parametrize("fault", ["error", "reset", "short", "lost"])
    def test_every_first_request_fails(self, faulty_s3: Faulty, store: Store, fault: str) -> None:
        """Every request fails once, then works: reads, writes, multipart, copies, lists, deletes."""
        proxy, _ = faulty_s3
        seen: set[tuple[str, str]] = set()

        def first_time(method: str, path: str) -> str | None:
            request = (method, path)
            return None if request in seen or seen.add(request) else fault

        proxy.faults = Faults(decide=first_time)
        data = os.urandom(20 * MIB)
        store.write("small", data[:1000])
        with store.open_write("large") as writer:
            writer.write(data)
        assert store.read("small") == data[:1000]
        assert store.read_head("large", 10) == (data[:10], len(data))
        assert store.read_range("large", MIB, len(data)) == data[MIB:]
        assert [info.key for info in store.list()] == ["large", "small"]
        assert store.info("large").size == len(data)
        assembled = assemble_file(store, "joined", b"head", store, [("large", 5, len(data)), ("small", 0, 1000)])
        assert assembled.bytes_transferred < 6 * MIB
        assert store.read("joined") == b"head" + data[5:] + data[:1000]
        assert store.create("claim", b"me")
        assert not store.create("claim", b"you")
        store.delete(["large", "small", "joined", "claim"])
        assert list(store.list()) == []
        assert proxy.counts[fault] > 10

    def test_slow_responses(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, _ = faulty_s3
        proxy.faults = Faults(slow_bodies=1.0)
        store.write("x", b"0123456789")
        assert store.read("x") == b"0123456789"
        assert proxy.counts["slow"] == 2

    def test_random_faults(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, _ = faulty_s3
        proxy.faults = Faults(errors=0.05, short_bodies=0.05, resets=0.02, lost_answers=0.02)
        contents = {f"k/{number}": os.urandom(10_000 + number) for number in range(40)}
        for key, content in contents.items():
            store.write(key, content)
        for key, content in contents.items():
            assert store.read(key) == content
            assert store.read_range(key, 10, 9000) == content[10:9000]
        assert len(list(store.list("k"))) == 40
        assert sum(proxy.counts.values()) > 10

    def test_a_short_outage(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, root = faulty_s3
        store.write("x", b"1")
        proxy.faults.outage_until = time.monotonic() + 1.5
        patient = Store(root.uri, root.storage_options, retry=RetryPolicy(first_wait_seconds=0.1))
        assert patient.read("x") == b"1"
        assert proxy.counts["reset"] >= 2

    def test_a_long_outage_is_an_error(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, root = faulty_s3
        proxy.faults.outage_until = time.monotonic() + 60
        hasty = Store(root.uri, root.storage_options, retry=replace(QUICK, attempts=3))
        with pytest.raises(StoreError, match=r"writing s3://.*/x failed after 3 attempts"):
            hasty.write("x", b"1")
        with pytest.raises(StoreError, match="failed"), hasty.open_write("y") as writer:
            writer.write(bytes(17 * MIB))

    def test_a_failed_large_write_leaves_nothing(self, faulty_s3: Faulty, s3_root: S3Root) -> None:
        proxy, root = faulty_s3
        proxy.faults = Faults(decide=lambda method, path: "error" if "partNumber=2" in path else None)
        hasty = Store(root.uri, root.storage_options, retry=replace(QUICK, attempts=3))
        with pytest.raises(StoreError, match="writing part 2"), hasty.open_write("x") as writer:
            writer.write(bytes(40 * MIB))
        direct = Store(s3_root.uri, s3_root.storage_options)
        assert list(direct.list()) == []
        assert direct.remove_abandoned() == 0  # the upload was aborted

    def test_lasting_errors_take_one_request(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, root = faulty_s3
        store.write("short", b"123")
        for action, error in (
            (lambda: store.read("none"), ObjectNotFoundError),
            (lambda: store.info("none"), ObjectNotFoundError),
            (lambda: store.read_range("short", 0, 10), CorruptObjectError),
            (lambda: Store("s3://no-such-bucket-here", root.storage_options).write("x", b""), StoreError),
        ):
            before = len(proxy.requests)
            with pytest.raises(error):
                action()
            assert len(proxy.requests) - before == 1

    def test_a_refused_deletion_is_an_error(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        answer = {"Errors": [{"Key": "x", "Code": "AccessDenied", "Message": "Access Denied"}]}
        monkeypatch.setattr(store.backend, "call", lambda method, **arguments: answer)
        with pytest.raises(StoreError, match=r"deleting 1 objects .*permission denied"):
            store.delete(["x"])

    def test_create_succeeds_although_its_response_is_lost(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, _ = faulty_s3
        answers = iter(["lost"])
        proxy.faults = Faults(decide=lambda method, path: next(answers, None) if method == "PUT" else None)
        assert store.create("claim", b"me")
        assert store.read("claim") == b"me"

    def test_create_while_another_process_deletes_the_object(
        self, faulty_s3: Faulty, s3_root: S3Root, store: Store
    ) -> None:
        proxy, _ = faulty_s3
        direct = Store(s3_root.uri, s3_root.storage_options)
        direct.write("claim", b"another's")

        def delete_before_head(method: str, path: str) -> None:
            if method == "HEAD":
                direct.delete(["claim"])

        proxy.faults = Faults(decide=delete_before_head)
        assert not store.create("claim", b"me")
        assert not direct.exists("claim")
        assert store.create("claim", b"me")


class TestServersThatIgnoreIfNoneMatch:
    def test_the_probe_detects_them(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, root = faulty_s3
        assert store.probe_conditional_writes()
        proxy.faults = Faults(dropped_headers=frozenset({"if-none-match"}))
        assert not store.probe_conditional_writes()
        assert list(store.list()) == []
        fallback = Store(root.uri, root.storage_options, conditional_writes=False)
        assert fallback.create("x", b"1")
        assert not fallback.create("x", b"2")


class TestEtags:
    """Ranged reads of one state of an object, on two servers, and on one that ignores If-Match."""

    @pytest.mark.parametrize("root", ["s3_root", "moto_root", "faulty_s3"])
    def test_a_replaced_object_is_not_read(self, root: str, request: pytest.FixtureRequest) -> None:
        found = request.getfixturevalue(root)
        if isinstance(found, tuple):
            proxy, found = found
            proxy.faults = Faults(dropped_headers=frozenset({"if-match"}))
        store = Store(found.uri, found.storage_options, retry=QUICK)
        store.write("x", bytes(1000))
        etag = store.info("x").etag
        assert store.read_range("x", 10, 20, etag) == bytes(10)
        store.write("x", bytes(999) + b"1")
        with pytest.raises(ObjectChangedError, match="was replaced by another object"):
            store.read_range("x", 10, 20, etag)
        assert store.read_range("x", 10, 20, store.info("x").etag) == bytes(10)

    def test_a_server_that_refuses_every_if_match(self, s3_root: S3Root, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(s3_root.uri, s3_root.storage_options)
        store.write("x", b"before")
        etag, files = store.info("x").etag, store.backend.fs  # type: ignore[attr-defined]
        send = files._call_s3

        async def call(method: str, **arguments: Any) -> Any:
            if "IfMatch" in arguments:
                raise ClientError({"Error": {"Code": "PreconditionFailed"}}, method)
            return await send(method, **arguments)

        monkeypatch.setattr(files, "_call_s3", call)
        assert store.read_range("x", 0, 6, etag) == b"before"
        store.write("x", b"after!")
        with pytest.raises(ObjectChangedError):
            store.read_range("x", 0, 6, etag)

    def test_a_model_that_is_replaced_after_it_was_listed(self, s3_root: S3Root) -> None:
        store = Store(s3_root.uri, s3_root.storage_options)
        write_model(store, tensors_of(1))
        folder = open_folder(store.root_uri, store._options)
        listed = folder.files["model.safetensors"]
        write_model(store, tensors_of(1, seed=1))
        listing = list_model(store.root_uri, store._options)
        # As when the server lists another etag than it answers reads with: the etag of the reads counts.
        stale = _read_weight_file(folder, "model.safetensors", FileVersion(listed.size, listed.etag), complete=True)
        assert {source.file for source in listing.tensors.values()} == {stale.version}


class TestFewRequests:
    def test_a_sharded_model(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, _ = faulty_s3
        write_model(store, tensors_of(6), files=6)
        proxy.requests.clear()
        listing = list_model(store.root_uri, store._options)
        # One listing, the index, the config; for each file its header, and its content for the fingerprint.
        assert len(proxy.requests) == 1 + 1 + 1 + 6 + 6
        proxy.requests.clear()
        reader = TensorReader(store._options)
        for source in listing.tensors.values():
            reader.read(source)
        assert len(proxy.requests) == len(listing.tensors)

    def test_a_large_tensor_in_parallel_chunks(self, faulty_s3: Faulty, store: Store) -> None:
        proxy, _ = faulty_s3
        tensor = torch.arange(5 * MIB, dtype=torch.int32)
        write_model(store, {"a": tensor})
        source = list_model(store.root_uri, store._options).tensors["a"]
        proxy.requests.clear()
        assert torch.equal(TensorReader(store._options).read(source), tensor)
        assert len(proxy.requests) == 3


class TestAbandonedUploads:
    def test_they_are_removed_by_age(self, s3_root: S3Root) -> None:
        store = Store(s3_root.uri, s3_root.storage_options)
        backend = store.backend
        assert isinstance(backend, S3Backend)
        backend.call("create_multipart_upload", Key=backend.object_key("left"))
        backend.call("create_multipart_upload", Key="another/prefix/not-ours")
        assert list(store.list()) == []
        assert store.remove_abandoned(older_than_seconds=3600) == 0
        assert store.remove_abandoned() == 1
        assert store.remove_abandoned() == 0


class TestManyObjects:
    def test_lists_and_deletes_of_several_pages(self, s3_root: S3Root, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(s3_root.uri, s3_root.storage_options)
        backend, methods = store.backend, []
        assert isinstance(backend, S3Backend)
        original = backend.call

        def small_pages(method: str, **arguments: object) -> dict[str, Any]:
            methods.append(method)
            return original(method, **arguments, **({"MaxKeys": 20} if method == "list_objects_v2" else {}))

        monkeypatch.setattr(backend, "call", small_pages)
        monkeypatch.setattr(s3_backend, "_DELETE_BATCH", 20)
        names = [f"n/{number:04d}" for number in range(50)]
        for name in names:
            store.write(name, b"")
        methods.clear()
        assert [info.key for info in store.list("n")] == names
        assert len(methods) == 3
        store.delete(names)
        assert len(methods) == 3 + 3
        assert list(store.list()) == []


class TestCredentials:
    CODE = """
import json, sys
from eigenmerge.core.storage.store import Store
store = Store(sys.argv[1], json.loads(sys.argv[2]))
store.write("who", b"me")
print(store.read("who").decode(), store)
"""

    def run(self, uri: str, options: dict[str, object], environment: dict[str, str], home: Path) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        arguments = [sys.executable, "-c", self.CODE, uri, json.dumps(options)]
        environment = {**clean, "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true", **environment}
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60).stdout

    def test_from_the_environment(self, s3_root: S3Root, s3_endpoint: str, tmp_path: Path) -> None:
        environment = {
            "AWS_ENDPOINT_URL": s3_endpoint,
            "AWS_ACCESS_KEY_ID": "PLANTED",
            "AWS_SECRET_ACCESS_KEY": "planted",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }
        assert self.run(s3_root.uri, {}, environment, tmp_path) == f"me Store('{s3_root.uri}')\n"

    def test_from_a_profile(self, s3_root: S3Root, s3_endpoint: str, tmp_path: Path) -> None:
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "config").write_text(f"[profile merging]\nregion = x\nendpoint_url = {s3_endpoint}\n")
        keys = "aws_access_key_id = PLANTED\naws_secret_access_key = planted\n"
        (tmp_path / ".aws" / "credentials").write_text(f"[merging]\n{keys}")
        assert self.run(s3_root.uri, {"profile": "merging"}, {}, tmp_path).startswith("me ")
        assert self.run(s3_root.uri, {}, {"AWS_PROFILE": "merging"}, tmp_path).startswith("me ")

    def test_options_by_protocol(self, s3_root: S3Root) -> None:
        store = Store(s3_root.uri, {"s3": s3_root.storage_options, "gs": {"token": "other"}})
        store.write("x", b"1")
        assert store._options == s3_root.storage_options

    def test_missing_credentials(
        self, s3_root: S3Root, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StoreError, match="no credentials found"):
            Store(s3_root.uri, {"endpoint_url": s3_endpoint}).read("x")

    def test_denied_access(self, faulty_s3: Faulty) -> None:
        proxy, root = faulty_s3
        store = Store(root.uri, root.storage_options, retry=QUICK)
        proxy.faults = Faults(decide=lambda method, path: "denied")
        with pytest.raises(StoreError, match="permission denied"):
            store.write("x", b"1")
        assert len(proxy.requests) == 1


def test_a_forked_process_opens_its_own_connection(s3_root: S3Root) -> None:
    store = Store(s3_root.uri, s3_root.storage_options)
    store.write("x", b"parent")
    code = (
        "import multiprocessing, sys, json\n"
        "from eigenmerge.core.storage.store import Store\n"
        "store = Store(sys.argv[1], json.loads(sys.argv[2]))\n"
        "store.read('x')\n"
        "def child(): sys.exit(0 if store.read('x') == b'parent' else 1)\n"
        "process = multiprocessing.get_context('fork').Process(target=child)\n"
        "process.start(); process.join(30); sys.exit(process.exitcode)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, s3_root.uri, json.dumps(s3_root.storage_options)], check=True, timeout=60
    )


def test_a_large_object_is_read_back_unchanged(s3_root: S3Root) -> None:
    store = Store(s3_root.uri, s3_root.storage_options)
    data = os.urandom(33 * MIB)
    store.write("x", data)
    assert hashlib.sha256(store.read("x")).digest() == hashlib.sha256(data).digest()
