"""Identity of places: every spelling of one place is the same place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eigenmerge.core.output.places import place_of


@pytest.mark.parametrize(
    "spelled",
    [
        "s3a://bucket/models/base",
        "S3://bucket/models/base/",
        "s3://bucket//models///base",
        "s3://bucket/models/x/../base",
        "s3://bucket/./models/base/.",
        "simplecache::s3://bucket/models/base",
        "s3://bucket/models/base?versionId=1",
    ],
)
def test_spellings_of_a_remote_place(spelled: str) -> None:
    place = place_of("s3://bucket/models/base")
    assert place.contains(place_of(spelled)) and place_of(spelled).contains(place)
    assert place_of("s3://bucket").contains(place_of(spelled)) and not place.contains(place_of("s3://bucket"))


@pytest.mark.parametrize(
    "other",
    ["s3://bucket/models/base2", "s3://bucket/models/Base", "s3://bucket2/models/base", "gs://bucket/models/base"],
)
def test_other_remote_places(other: str) -> None:
    place = place_of("s3://bucket/models/base")
    assert not place.contains(place_of(other)) and not place_of(other).contains(place)


def test_services_with_several_protocols() -> None:
    assert place_of("gcs://b/x").contains(place_of("gs://b/x/y"))
    assert place_of("abfss://box@account.dfs.core.windows.net/x").contains(place_of("az://box/x/y"))
    assert place_of("memory://a/b").contains(place_of("memory:///a/b"))


def test_spellings_of_a_local_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = place_of(str(tmp_path / "models/base"))
    below = ("", "/new/deeper")
    for spelled in ("models/base", "link/base", "models/../link/base", "~/models/base", f"file://{tmp_path}/link/base"):
        for rest in below:
            assert place.contains(place_of(spelled + rest)), spelled
        assert place_of(spelled).contains(place)
    assert not place.contains(place_of("models/base-2")) and not place.contains(place_of("models"))
    assert not place.contains(place_of("loop"))
    # places that do not exist yet
    new = place_of("link/new/out")
    assert new.contains(place_of("models/new/out/x")) and not new.contains(place_of("models/new/other"))


def test_a_file_that_links_elsewhere_is_where_its_content_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "expert").mkdir()
    (tmp_path / "out/model.safetensors").write_bytes(b"x")
    link = tmp_path / "expert/model.safetensors"
    link.symlink_to(os.path.relpath(tmp_path / "out/model.safetensors", link.parent))
    assert place_of(str(tmp_path / "out")).contains(place_of(str(link)))
