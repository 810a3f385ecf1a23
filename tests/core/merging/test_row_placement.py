"""Rows of differing vocabularies against a naive loop."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.merging.row_placement import covered, fill_with_means, place_rows
from eigenmerge.core.planning.plan import ExpertTensor, Rows

COLUMNS, TARGET = 3, 12


@st.composite
def runs(draw: st.DrawFn) -> tuple[Rows, int]:
    """Runs that do not overlap in the output, and how many rows are stored."""
    rows, stored, position = [], draw(st.integers(1, 10)), 0
    while position < TARGET and draw(st.booleans()):
        start = draw(st.integers(position, TARGET - 1))
        origin = draw(st.integers(0, stored - 1))
        length = draw(st.integers(1, min(TARGET - start, stored - origin)))
        rows.append((start, origin, length))
        position = start + length
    return tuple(rows), stored


def row_pairs(rows: Rows) -> dict[int, int]:
    return {start + i: origin + i for start, origin, length in rows for i in range(length)}


@settings(deadline=None, max_examples=60)
@given(st.lists(runs(), min_size=1, max_size=4), st.sets(st.integers(0, TARGET - 1)))
def test_means_of_those_that_have_a_row(given_runs: list[tuple[Rows, int]], wanted_rows: set[int]) -> None:
    stored = [torch.randn(count, COLUMNS, dtype=torch.float64) for _, count in given_runs]
    experts = [
        ExpertTensor(index, TensorSource("x", 0, 0, "F64", (count, COLUMNS)), rows=rows)
        for index, (rows, count) in enumerate(given_runs)
    ]
    wanted = torch.zeros(TARGET, dtype=torch.bool)
    wanted[list(wanted_rows)] = True
    before = torch.randn(TARGET, COLUMNS, dtype=torch.float64)
    found = fill_with_means(before.clone(), wanted, experts, lambda expert: stored[expert.expert])
    for row in range(TARGET):
        have = [stored[i][row_pairs(rows)[row]] for i, (rows, _) in enumerate(given_runs) if row in row_pairs(rows)]
        expected = torch.stack(have).mean(0) if row in wanted_rows and have else before[row]
        torch.testing.assert_close(found[row], expected)


@settings(deadline=None, max_examples=40)
@given(runs())
def test_placed_rows_are_the_covered_ones(given_runs: tuple[Rows, int]) -> None:
    rows, count = given_runs
    stored = torch.randn(count, COLUMNS)
    found = place_rows(stored, rows, torch.zeros(TARGET, COLUMNS))
    pairs = row_pairs(rows)
    assert covered(rows, TARGET).tolist() == [row in pairs for row in range(TARGET)]
    for row in range(TARGET):
        expected = stored[pairs[row]] if row in pairs else torch.zeros(COLUMNS)
        assert torch.equal(found[row], expected)


def test_an_adapter_has_no_rows_and_none_means_all_in_place() -> None:
    adapter = ExpertTensor(0, None)
    whole = ExpertTensor(1, TensorSource("x", 0, 0, "F32", (2, 1)))
    wanted = torch.tensor([False, True])
    found = fill_with_means(torch.zeros(2, 1), wanted, [adapter, whole], lambda _: torch.tensor([[5.0], [7.0]]))
    assert found.tolist() == [[0.0], [7.0]]
    assert covered(None, 3).all()
