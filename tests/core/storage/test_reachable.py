"""The first contact with a server: no answer is an error after seconds, and any answer will do."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage import first_contact
from eigenmerge.core.storage.reachable import check_reachable

from ...conftest import S3Root, free_port, s3_options
from ...faulty_proxy import FaultyProxy


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_wrong_port_is_told_with_bucket_and_endpoint() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreError, match=f"connecting to s3://bucket at {endpoint} failed after"):
        check_reachable(["s3://bucket/some/prefix", "s3://bucket/other"], s3_options(endpoint))


def test_a_silent_server_is_named_while_it_is_awaited(
    silent_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_contact, "_SECONDS_TO_NOTICE", 0.1)
    monkeypatch.setattr(first_contact, "LONGEST_WAIT_SECONDS", 0.3)
    endpoint = f"http://127.0.0.1:{silent_port}"
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match="no answer within"):
        check_reachable(["s3://bucket/prefix"], s3_options(endpoint))
    assert f"waiting for an answer from s3://bucket at {endpoint}" in caplog.text


@pytest.mark.parametrize("fault", ["denied", "error", None])
def test_any_answer_will_do(faulty_s3: tuple[FaultyProxy, S3Root], fault: str | None) -> None:
    proxy, root = faulty_s3
    proxy.faults.decide = lambda method, path: fault
    check_reachable([root.uri, "s3://no-such-bucket/x"], root.storage_options)


def test_local_paths_and_memory_need_no_contact() -> None:
    check_reachable(["/nowhere", "file:///nowhere", "memory://x", "relative"], {})
