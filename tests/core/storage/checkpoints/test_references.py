"""Model references: what a text can mean, and where that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.storage.checkpoints.references import ParsedReference, locate_model, parse_reference


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "meanings"),
        [
            ("owner/name", [("owner/name", None)]),
            ("  owner/name@v1 ", [("owner/name@v1", None)]),
            ("owner/name@v1+other/adapter@v2", [("owner/name@v1", "other/adapter@v2")]),
            ("s3://b/a+c", [("s3://b/a+c", None), ("s3://b/a", "c")]),
            ("s3://b/base+s3://b/adapter", [("s3://b/base+s3://b/adapter", None), ("s3://b/base", "s3://b/adapter")]),
            ("s3://b/a+", [("s3://b/a+", None)]),
        ],
    )
    def test_meanings(self, text: str, meanings: list[tuple[str, str | None]]) -> None:
        assert parse_reference(text) == [ParsedReference(*meaning) for meaning in meanings]

    def test_an_existing_path_is_literal(self, tmp_path: Path) -> None:
        (tmp_path / "a+b@c").mkdir()
        text = f"{tmp_path}/a+b@c"
        assert parse_reference(text) == [ParsedReference(text)]
        assert locate_model(text) == text

    def test_the_base_is_the_part_that_exists(self, tmp_path: Path) -> None:
        (tmp_path / "c++").mkdir()
        assert parse_reference(f"{tmp_path}/c+++adapter") == [ParsedReference(f"{tmp_path}/c++", "adapter")]

    @pytest.mark.parametrize("text", ["", "  ", "a\nb", "+", "+b", "b+"])
    def test_no_meaning(self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError):
            parse_reference(text)


class TestLocations:
    @pytest.mark.parametrize(
        ("text", "uri"),
        [
            ("owner/name", "hf://owner/name"),
            ("owner/name@rev", "hf://owner/name@rev"),
            ("hf://owner/name@refs/pr/3/x.safetensors", "hf://owner/name@refs%2Fpr%2F3/x.safetensors"),
            ("hf://owner/name@refs%2Fpr%2F3", "hf://owner/name@refs%2Fpr%2F3"),
            ("hf://owner/name@v1/x.safetensors", "hf://owner/name@v1/x.safetensors"),
            ("s3://bucket/a@b/", "s3://bucket/a@b"),
        ],
    )
    def test_hub_ids_and_urls(self, text: str, uri: str) -> None:
        assert locate_model(text) == uri

    def test_a_local_path_comes_before_a_hub_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "owner" / "name").mkdir(parents=True)
        assert locate_model("owner/name") == f"{tmp_path}/owner/name"
        with pytest.raises(CheckpointError, match="only models on the Hub have revisions"):
            locate_model("owner/name@v1")

    @pytest.mark.parametrize("text", ["/no/such/model", "name", "a/b/c", "file://owner/name"])
    def test_no_such_model(self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match="no such model"):
            locate_model(text)
