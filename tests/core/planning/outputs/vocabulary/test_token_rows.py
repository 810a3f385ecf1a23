"""Rows of tensors with one row per token, mapped between vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.planning.outputs.vocabulary.token_rows import (
    FittedTensor,
    count_rows,
    count_token_rows,
    find_token_tensors,
    map_rows,
    take_first_rows,
    without_rows,
)

vocabularies = st.lists(st.sampled_from("abcdefgh"), unique=True).map(
    lambda tokens: {token: row for row, token in enumerate(tokens)}
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", True),
        ("lm_head.bias", True),
        ("output.weight", True),
        ("layers.0.output.weight", False),
        ("bert.embeddings.position_embeddings.weight", False),
        ("wte.weight", True),
        ("wpe.weight", False),
    ],
)
def test_which_tensors_have_one_row_per_token(name: str, expected: bool) -> None:
    source = TensorSource("/m", 0, 64, "F32", (4, 4))
    assert (name in find_token_tensors({name: source})) is expected


def test_rows_are_counted_whatever_the_prefix(model: Any, adapter: Any) -> None:
    full = model("a", {"model.embed_tokens.weight": (7, 4), "lm_head.weight": (8, 4), "norm.weight": (4,)})
    assert count_token_rows(full) == {"embed_tokens.weight": 7, "lm_head.weight": 8}
    saved = adapter("b", {"base_model.model.model.embed_tokens.weight": (9, 4)})
    assert count_token_rows(saved) == {"embed_tokens.weight": 9}
    assert count_rows({}) == 0
    assert count_rows({"a": 0, "b": 6}) == 7


def test_swapped_tokens_new_tokens_and_padding() -> None:
    output, own = {"x": 0, "y": 1, "z": 2}, {"y": 0, "x": 1}
    assert map_rows(output, own, 5, 5) == ((0, 1, 1), (1, 0, 1), (3, 3, 2))  # z has no row, padding keeps its place
    assert map_rows(output, output, 3, 3) is None
    assert map_rows(output, output, 3, 5) == ((0, 0, 3),)
    assert map_rows({"x": 0, "y": 0}, {"x": 0, "y": 1}, 1, 2) == ((0, 0, 1),)  # two tokens share an output row


@given(vocabularies, vocabularies, st.integers(0, 3), st.integers(0, 3))
def test_every_mapped_row_belongs_to_the_same_token(
    output: dict[str, int], own: dict[str, int], output_padding: int, own_padding: int
) -> None:
    output_rows, own_rows = len(output) + output_padding, len(own) + own_padding
    rows = map_rows(output, own, output_rows, own_rows)
    if rows is None:
        rows = ((0, 0, own_rows),) if own_rows else ()
    mapped = {start + i: origin + i for start, origin, length in rows for i in range(length)}
    tokens = {row: token for token, row in output.items()}
    for row, origin in mapped.items():
        assert row < output_rows
        assert origin < own_rows
        assert own[tokens[row]] == origin if row in tokens else row == origin
    assert all(output[token] in mapped for token in output if token in own)


def test_the_first_rows_are_a_shorter_range_of_bytes() -> None:
    source = TensorSource("/m", 100, 100 + 5 * 8, "BF16", (5, 4))
    first = take_first_rows(source, 3)
    assert (first.start, first.stop, first.shape) == (100, 124, (3, 4))
    assert FittedTensor(first, None).key_suffix == "#3"
    assert FittedTensor(source, ((0, 1, 2),)).key_suffix == "#5[(0, 1, 2)]"


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (
            ["tok.weight", "generator_lm_head.weight", "generator_lm_head.bias"],
            ["embeddings.position_embeddings.weight"],
        ),
        (["backbone.embeddings.weight", "head.weight"], ["norm.bias", "layers.0.up.weight"]),
        (
            ["roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"],
            ["pos.weight"],
        ),
    ],
)
def test_shapes_and_config_tell_which_rows_are_tokens(model: Any, names: list[str], others: list[str]) -> None:
    rows = {name: (11,) if name.endswith("bias") else (11, 4) for name in names}
    rest = {name: (11,) if name.endswith("norm.bias") else (11, 4) for name in others if "pos.weight" not in name}
    rest["pos.weight"] = (16, 4)
    found = find_token_tensors(model("a", rows | rest).tensors, {"vocab_size": 11, "max_position_embeddings": 16})
    assert found == set(names)


def test_a_size_of_two_meanings_tells_nothing(model: Any) -> None:
    tensors = model("a", {"wte.weight": (8, 8), "pooler.dense.weight": (8, 8)}).tensors
    assert find_token_tensors(tensors, {"vocab_size": 8, "hidden_size": 8}) == {"wte.weight"}


def test_rows_can_be_left_out() -> None:
    assert without_rows(None, {1}, 3) == ((0, 0, 1), (2, 2, 1))
    assert without_rows(((0, 2, 3), (5, 0, 1)), {0, 5}, 6) == ((1, 3, 2),)
    assert without_rows(None, set(), 3) is None
