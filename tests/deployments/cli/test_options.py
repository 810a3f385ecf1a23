"""Conversion and display of the values of shared options."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.deployments.cli.options import (
    check_addresses,
    open_store,
    parse_age,
    parse_size,
    show_bytes,
    show_count,
    show_seconds,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("90m", 5400.0), ("12h", 43200.0), (" 7 d ", 604800.0), ("1.5w", 907200.0)]
)
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 days", "1e3s"])
def test_invalid_ages(text: str) -> None:
    with pytest.raises(RecipeError, match="--older-than"):
        parse_age(text)


def test_sizes() -> None:
    assert (parse_size("16GB"), parse_size("1GiB"), parse_size("1000"), parse_size(None)) == (
        16 * 10**9,
        2**30,
        1000,
        None,
    )
    with pytest.raises(RecipeError, match="--max-memory is '16 cows'; expected a size"):
        parse_size("16 cows")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.5, "1 KB"),
        (12345, "12.3 KB"),
        (5e9, "5 GB"),
        (1e12, "1 TB"),
        (2.5e15, "2500 TB"),
    ],
)
def test_bytes_have_three_digits(count: float, text: str) -> None:
    assert show_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99.4, "99.4 s"), (99.5, "1 min 40 s"), (3599.6, "1 h 00 min"), (12000, "3 h 20 min")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_counts_have_a_plural() -> None:
    assert [show_count(number, "shard") for number in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_credentials_in_an_address_are_not_repeated() -> None:
    check_addresses(store=None, OUT="s3://bucket/out")
    with pytest.raises(RecipeError, match="OUT: contains credentials") as refused:
        check_addresses(store="/store", OUT="s3://key:secret@bucket/out")
    assert "secret" not in str(refused.value)


def test_the_option_is_stronger_than_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"merge_method: average\nmodels: [a, b]\nstore: {tmp_path / 'of_recipe'}\n")
    assert open_store(None, str(recipe)).display("").endswith("of_recipe")
    assert open_store(str(tmp_path / "of_option"), str(recipe)).display("").endswith("of_option")
