"""Addresses: protocol, absolute form, and which options reach which server."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage.addresses import absolute_uri, is_local, protocol_of, select_options

FLAT = {"key": "k", "secret": "s", "token": "session"}


@pytest.mark.parametrize(
    ("uri", "protocol"),
    [("out", "file"), ("/a/b", "file"), ("file:///a", "file"), ("S3://b/x", "s3"), ("hf://o/n", "hf"), ("a:b", "file")],
)
def test_protocol(uri: str, protocol: str) -> None:
    assert protocol_of(uri) == protocol
    assert is_local(uri) == (protocol == "file")


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert absolute_uri("out") == f"{tmp_path}/out"
    assert absolute_uri("~/out") == f"{tmp_path}/home/out"
    assert absolute_uri(f"file://{tmp_path}/a%20b/") == f"{tmp_path}/a%20b"
    (tmp_path / "link").symlink_to(tmp_path)
    assert absolute_uri("link/x") == f"{tmp_path}/link/x"


def test_remote_addresses_lose_a_trailing_slash_only() -> None:
    assert absolute_uri("s3://bucket/a/") == "s3://bucket/a"
    assert absolute_uri("memory://") == "memory://"
    assert absolute_uri(absolute_uri("s3://bucket/a@b+c/")) == "s3://bucket/a@b+c"


@pytest.mark.parametrize("uri", ["", "a\nb", "\x00"])
def test_no_address(uri: str) -> None:
    with pytest.raises(StoreError, match="is not an address"):
        absolute_uri(uri)


class TestOptions:
    @pytest.mark.parametrize("uri", ["/out", "file:///out", "memory://x", "hf://owner/name", "https://host/x"])
    def test_flat_options_are_for_object_stores_only(self, uri: str) -> None:
        assert select_options(uri, FLAT) == {}

    @pytest.mark.parametrize("uri", ["s3://bucket", "gs://bucket", "az://container"])
    def test_object_stores_get_flat_options(self, uri: str) -> None:
        assert select_options(uri, FLAT) == FLAT

    def test_options_by_protocol(self) -> None:
        options = {"s3": FLAT, "hf": {"token": "t"}}
        assert select_options("s3://bucket", options) == FLAT
        assert select_options("hf://owner/name", options) == {"token": "t"}
        assert select_options("gs://bucket", options) == {}

    def test_a_flat_option_with_a_mapping_is_not_a_protocol(self) -> None:
        options = {"client_kwargs": {"region_name": "x"}}
        assert select_options("s3://bucket", options) == options

    def test_the_result_is_a_copy(self) -> None:
        select_options("s3://bucket", FLAT)["key"] = "changed"
        assert FLAT["key"] == "k"
