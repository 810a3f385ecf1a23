"""Tensors with one row per token, and the mapping of their rows from one vocabulary to another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...listing import ModelListing, TensorSource
from ...views import select
from ..inputs.adapters import unwrapped_name
from ..inputs.tokenizers import Vocabulary
from ..plan import Rows

_ROWS_BY_TOKEN = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|shared|embed_in|token_embedding|lm_head|embed_out"
    r"|cls\.predictions\.decoder|vocab_projector)\.(weight|bias)$|(^|\.)cls\.predictions\.bias$|^output\.weight$"
)


@dataclass(frozen=True, slots=True)
class FittedTensor:
    """A stored tensor with the rows of the output that its rows go to.

    rows : None when every row keeps its place
    """

    source: TensorSource
    rows: Rows | None

    @property
    def key_suffix(self) -> str:
        """Suffix that distinguishes the fitted tensor from the stored one in keys."""
        return f"#{self.source.shape[0]}{list(self.rows) if self.rows is not None else ''}"


def is_row_by_token(name: str) -> bool:
    """Return whether a tensor has one row per token. Embeddings of positions and token types do not."""
    return bool(_ROWS_BY_TOKEN.search(name))


def count_token_rows(listing: ModelListing) -> dict[str, int]:
    """Return the number of rows of each tensor with one row per token.

    The keys are the last two parts of the names, which are the same whatever prefix a checkpoint uses.
    """
    tensors = {**listing.tensors, **(listing.adapter.tensors if listing.adapter is not None else {})}
    named = ((unwrapped_name(name), source) for name, source in tensors.items())
    by_token = ((name, source) for name, source in named if is_row_by_token(name) and source.shape)
    return {".".join(name.split(".")[-2:]): source.shape[0] for name, source in by_token}


def count_rows(vocabulary: Vocabulary) -> int:
    """Return the number of rows that a vocabulary needs: the largest row + 1."""
    return max(vocabulary.values(), default=-1) + 1


def take_first_rows(source: TensorSource, num_rows: int) -> TensorSource:
    """Return the first rows of a tensor: of a stored one, a shorter range of the same bytes."""
    return select(source, 0, 0, num_rows)


def map_rows(output: Vocabulary, own: Vocabulary, output_rows: int, own_rows: int) -> Rows | None:
    """Return where the rows of a tensor go in the output; None when every row keeps its place.

    Rows are matched by token. Padding rows, which belong to no token of either vocabulary, keep their place.

    Parameters
    ----------
    output, own : vocabularies of the output and of the tensor
    output_rows, own_rows : rows of the output's tensor and of this one, padding included
    """
    pairs = [
        (row, own[token])
        for token, row in output.items()
        if token in own and row < output_rows and own[token] < own_rows
    ]
    first_padding = max(count_rows(output), count_rows(own))
    pairs += [(row, row) for row in range(first_padding, min(output_rows, own_rows))]
    rows = _merge_adjacent(pairs)
    return None if rows == ((0, 0, output_rows),) and own_rows == output_rows else rows


def _merge_adjacent(pairs: Iterable[tuple[int, int]]) -> Rows:
    """Return (output row, own row) pairs as sorted runs (first output row, first own row, number of rows)."""
    runs: list[list[int]] = []
    for row, own in sorted(pairs):
        if runs and runs[-1][0] + runs[-1][2] == row and runs[-1][1] + runs[-1][2] == own:
            runs[-1][2] += 1
        elif not runs or row >= runs[-1][0] + runs[-1][2]:  # of two tokens with one output row the first is used
            runs.append([row, own, 1])
    return tuple((row, own, length) for row, own, length in runs)
