"""Models on the Hub, with a local server that implements the requests of the client."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save

from eigenmerge.core.errors import CheckpointError, StoreError
from eigenmerge.core.storage import first_contact
from eigenmerge.core.storage.checkpoints import hub as hub_module
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader

COMMITS = {"main": "a" * 40, "v2": "b" * 40, "refs/pr/1": "c" * 40}


class FakeHub:
    """A server with one model, owner/model, in three revisions; records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.files = {commit: self._files(float(number)) for number, commit in enumerate(COMMITS.values())}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub.requests.append((self.command, self.path, self.headers.get("Range")))
                status, headers, content = hub.answer(urlsplit(self.path).path, self.headers.get("Range"))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def options(self) -> dict[str, object]:
        return {"hf": {"endpoint": f"http://127.0.0.1:{self.server.server_address[1]}", "token": "hf_planted"}}

    def _files(self, value: float) -> dict[str, bytes]:
        weights = save({"a.weight": torch.full((300, 300), value), "b": torch.ones(3)})
        return {"model.safetensors": weights, "config.json": b'{"model_type": "x"}', "tokenizer.json": b"{}"}

    def answer(self, path: str, byte_range: str | None) -> tuple[int, dict[str, str], bytes]:
        parts = unquote(path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api(parts[2:])
        if parts[:2] == ["owner", "model"] and parts[2] == "resolve":
            content = self.files[parts[3]]["/".join(parts[4:])]
            if byte_range is None:
                return 200, {"ETag": '"x"', "X-Repo-Commit": parts[3]}, content
            start, _, stop = byte_range.removeprefix("bytes=").partition("-")
            piece = content[int(start) : int(stop) + 1]
            return 206, {"Content-Range": f"bytes {start}-{stop}/{len(content)}", "X-Repo-Commit": parts[3]}, piece
        return 404, {}, b""

    def _api(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        if parts[:2] != ["owner", "model"]:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        kind, revision = (parts[2], "/".join(parts[3:])) if len(parts) > 2 else ("revision", "main")
        commit = COMMITS.get(revision, revision)
        if commit not in self.files:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "revision":
            return self._json({"id": "owner/model", "sha": commit, "siblings": [], "tags": []})
        assert kind == "tree", kind
        return self._json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                | ({"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}})
                for name, data in self.files[commit].items()
            ]
        )

    @staticmethod
    def _json(content: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


class TestHub:
    @pytest.mark.parametrize(
        ("reference", "value"),
        [
            ("hf://owner/model", 0),
            ("owner/model", 0),
            ("owner/model@main", 0),
            ("owner/model@v2", 1),
            ("hf://owner/model@refs/pr/1", 2),
            ("hf://owner/model@v2/model.safetensors", 1),
        ],
    )
    def test_a_model_at_a_revision(self, hub: FakeHub, reference: str, value: int) -> None:
        listing = list_model(reference, hub.options)
        assert listing.name == reference
        assert list(COMMITS.values())[value] in listing.uri  # pinned to the commit
        assert listing.config == {"model_type": "x"}
        assert "tokenizer.json" in listing.side_files
        reader = TensorReader(hub.options)
        assert torch.equal(reader.read(listing.tensors["a.weight"], (3, 5)), torch.full((2, 300), float(value)))
        assert torch.equal(reader.read(listing.tensors["b"]), torch.ones(3))

    def test_only_the_bytes_of_the_tensor_are_read(self, hub: FakeHub) -> None:
        listing = list_model("owner/model", hub.options)
        before = len(hub.requests)
        TensorReader(hub.options).read(listing.tensors["b"])
        ranges = [byte_range for _, path, byte_range in hub.requests[before:] if "/resolve/" in path]
        source = listing.tensors["b"]
        assert ranges == [f"bytes={source.start}-{source.stop - 1}"]

    def test_the_fingerprint_depends_on_the_content_only(self, hub: FakeHub) -> None:
        prints = {list_model(f"owner/model@{revision}", hub.options).fingerprint for revision in COMMITS}
        assert len(prints) == 3
        hub.files["d" * 40] = hub.files[COMMITS["main"]]
        assert list_model(f"owner/model@{'d' * 40}", hub.options).fingerprint in prints

    @pytest.mark.parametrize("reference", ["owner/none", "hf://owner/none", "owner/model@none"])
    def test_no_such_model(self, hub: FakeHub, reference: str) -> None:
        with pytest.raises(CheckpointError, match="no such model") as caught:
            list_model(reference, hub.options)
        assert "planted" not in str(caught.value)

    def test_an_unreachable_hub(self) -> None:
        with pytest.raises(StoreError, match="no such local path"):
            list_model("models/misspelled", {"hf": {"endpoint": "http://127.0.0.1:1"}})

    def test_a_silent_hub_is_named_while_it_is_awaited(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(first_contact, "_SECONDS_TO_NOTICE", 0.1)
        monkeypatch.setattr(hub_module, "LONGEST_WAIT_SECONDS", 0.3)
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
            expected = f"the Hub at {endpoint}, to look up hf://models/misspelled"
            with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match=f"{expected} .*: no answer within"):
                list_model("models/misspelled", {"hf": {"endpoint": endpoint}})
        assert f"waiting for an answer from {expected}" in caplog.text
