"""JSON from outside: only complete, finite objects without duplicate keys are accepted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.formats.bounded_json import parse_json_object

scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(st.dictionaries(st.text(), values))
def test_parses_what_json_writes(content: dict[str, object]) -> None:
    data = json.dumps(content).encode()
    assert parse_json_object(data, "x.json", len(data)) == content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        (b'{"outer": {"b": 1, "b": 1}}', "duplicate key 'b'"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "found NoneType"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"\xff{}", "invalid UTF-8 at byte 0"),
        (b'{"a": ', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits, expected at most 100"),
        (b'{"a": ' + b"9" * 400 + b"}", "a number of 400 digits"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b"[" * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_rejects_with_the_file_and_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_json_object(data, "dir/config.json", 10**6)
    assert str(caught.value).startswith("dir/config.json: ")
    assert "\n" not in str(caught.value)


def test_the_limit_is_inclusive() -> None:
    data = b'{"a": 1}'
    assert parse_json_object(data, "x", len(data)) == {"a": 1}
    with pytest.raises(CheckpointError, match="8 bytes of JSON, expected at most 7"):
        parse_json_object(data, "x", len(data) - 1)


def test_non_finite_numbers_are_accepted_on_request() -> None:
    assert parse_json_object(b'{"a": Infinity}', "x", 100, finite=False) == {"a": float("inf")}
