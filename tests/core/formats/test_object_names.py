"""Names from outside: ordinary names pass unchanged, names that could leave the root are refused with the reason."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.errors import StoreError
from eigenmerge.core.formats.object_names import check_key, find_key_problem


@pytest.mark.parametrize("key", ["a", "a/b.json", ".hidden", "a..b", "ä ö+%20", "a:b", "x" * 255, "a~", "a=b&c#d"])
def test_relative_names_pass(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("~/x", "absolute"),
        ("C:/x", "absolute"),
        ("a/../b", "component"),
        ("./a", "component"),
        ("a//b", "component"),
        ("a/", "component"),
        ("a\\b", "backslash"),
        ("a\x00b", "control characters"),
        ("a\nb", "control characters"),
        ("\ud800", "Unicode"),
        ("s3://bucket/x", "address"),
        ("a::b", "address"),
        ("a?versionId=1", "address"),
        ("x" * 256, "longer than 255"),
        ("ä" * 128, "longer than 255"),
        ("x/" * 600 + "x", "1201 bytes"),
    ],
)
def test_other_names_are_refused(key: str, reason: str) -> None:
    assert reason in str(find_key_problem(key))
    with pytest.raises(StoreError, match="is refused"):
        check_key(key)


@given(st.text(max_size=30))
def test_an_accepted_name_stays_below_the_root(key: str) -> None:
    if find_key_problem(key) is None:
        joined = PurePosixPath("/root", key)
        assert joined.is_relative_to("/root") and ".." not in joined.parts
        assert str(joined) == f"/root/{key}"
