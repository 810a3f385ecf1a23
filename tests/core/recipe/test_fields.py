"""Field types of recipes: model references, dtypes and sizes in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from eigenmerge.core.recipe.fields import DtypeName, ModelReference, parse_bytes

SIZES: list[tuple[Any, int]] = [
    (7, 7),
    (1e9, 10**9),
    ("7", 7),
    ("5000000000", 5 * 10**9),
    ("1b", 1),
    ("12 B", 12),
    ("16GB", 16 * 10**9),
    ("16gb", 16 * 10**9),
    ("2G", 2 * 10**9),
    ("5k", 5000),
    ("1.5 kB", 1500),
    (".5GB", 5 * 10**8),
    ("3MB", 3 * 10**6),
    ("1.1TB", 11 * 10**11),
    ("2PB", 2 * 10**15),
    ("4KiB", 2**12),
    ("512MiB", 2**29),
    (" 1.5GiB ", 3 * 2**29),
    ("1tib", 2**40),
    ("16Gbit", 2 * 10**9),
]


@pytest.mark.parametrize(("written", "size"), SIZES)
def test_sizes(written: Any, size: int) -> None:
    assert parse_bytes(written) == size


@pytest.mark.parametrize(
    "written",
    [
        *["", "GB", "5 parsecs", "5 GiBB", "5GB each", "5GB,", "1e9", "1e+9", "1e400", "1_000", "1.5.2GB", "٣GB"],
        *["0", "0GB", "0.4", 0, -1, "-1GB"],
        *[None, True, b"5GB", [5], float("nan"), float("inf"), 2**63, "9EB" * 2, "10EB", "9" * 400],
    ],
)
def test_what_is_not_a_size_is_refused_in_one_line(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^is .*; expected a size such as 5GB or 512MiB$"):
        parse_bytes(written)


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ("a", "a"),
        (Path("/models/a"), "/models/a"),
        ({"path": "a"}, "a"),
        ({"path": "a", "revision": "v1"}, "a@v1"),
        ({"model": "a"}, "a"),
        ({"model": {"path": "a", "revision": "v1"}, "lora": {"path": "b", "revision": "v2"}}, "a@v1+b@v2"),
        ({"model": {"path": "a"}, "lora": None}, "a"),
    ],
)
def test_forms_of_a_model_reference(written: Any, reference: str) -> None:
    assert TypeAdapter(ModelReference).validate_python(written) == reference


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (" ", "is empty; expected a path, a URI or a Hub name"),
        ("s3://key:secret@bucket/a", "contains credentials"),
        ({"model": "a", "override_architecture": "X"}, "override_architecture is not supported"),
        ({"model": "a", "lora": 3}, "valid string"),
        ({"path": "a", "branch": "b"}, "valid string"),
    ],
)
def test_what_is_not_a_model_reference(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ModelReference).validate_python(written)


@pytest.mark.parametrize("written", ["bfloat16", "bf16", "torch.bfloat16"])
def test_names_of_a_dtype(written: str) -> None:
    assert TypeAdapter(DtypeName).validate_python(written) == "bfloat16"
    with pytest.raises(ValidationError, match="is 'int8'; expected one of float64, float32, bfloat16, float16"):
        TypeAdapter(DtypeName).validate_python("int8")
