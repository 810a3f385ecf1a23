"""Tensors with one row per token, and the mapping of their rows from one vocabulary to another."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from ....listing import ModelListing, TensorSource
from ....views import select
from ...inputs.adapters.read_adapter import unwrapped_name
from ...inputs.tokenizers import Vocabulary
from ...names import layer_of
from ...plan import Rows

_ROWS_BY_TOKEN = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|shared|embed_in|token_embedding|lm_head|embed_out"
    r"|cls\.predictions\.decoder|vocab_projector)\.(weight|bias)$|(^|\.)cls\.predictions\.bias$|^output\.weight$"
)


# Rows that stand for positions, segments or layers, in models whose vocabulary has the same size by chance.
_OTHER_ROWS = re.compile(r"position|\bwpe\b|pos_embed|token_type|type_embed|segment|norm", re.IGNORECASE)


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


def find_token_tensors(
    tensors: Mapping[str, TensorSource], config: Mapping[str, object] | None = None
) -> frozenset[str]:
    """Return the names of the tensors with one row per token: embeddings, output projections and their biases.

    Outside of layers, these are the matrices and biases with as many rows as the vocabulary has, whatever their names.
    A size that config.json uses for something else too (hidden size, positions) tells nothing; then names decide.
    """
    named = {name for name, source in tensors.items() if source.shape and _ROWS_BY_TOKEN.search(name)}
    sizes = {tensors[name].shape[0] for name in named if len(tensors[name].shape) == 2} | _vocabulary_sizes(config)
    sizes -= _other_sizes(config)
    found = {
        name
        for name, source in tensors.items()
        if source.shape and source.shape[0] in sizes and layer_of(name) is None and not _OTHER_ROWS.search(name)
        if len(source.shape) == 2 or (len(source.shape) == 1 and name.endswith("bias"))
    }
    return frozenset(named | found)


def find_token_columns(tensors: Mapping[str, TensorSource], by_row: Collection[str]) -> frozenset[str]:
    """Return the names of biases (1, V) with one column per token: final_logits_bias of BART, Marian and Pegasus.

    Parameters
    ----------
    by_row : result of `find_token_tensors`
    """
    sizes = {tensors[name].shape[0] for name in by_row}
    return frozenset(
        name
        for name, source in tensors.items()
        if len(source.shape) == 2 and source.shape[0] == 1 and source.shape[1] in sizes
        if name.endswith("bias") and layer_of(name) is None
    )


def _vocabulary_sizes(config: Mapping[str, object] | None) -> set[int]:
    parts = [config or {}, *_inner(config, "text_config")]
    return {size for part in parts for size in [part.get("vocab_size")] if isinstance(size, int)}


def _other_sizes(config: Mapping[str, object] | None) -> set[int]:
    parts = [config or {}, *_inner(config, "text_config")]
    return {
        value
        for part in parts
        for key, value in part.items()
        if type(value) is int and key != "vocab_size" and not key.endswith(("_id", "_index"))
    }


def _inner(config: Mapping[str, object] | None, key: str) -> list[Mapping[str, object]]:
    part = (config or {}).get(key)
    return [cast("Mapping[str, object]", part)] if isinstance(part, Mapping) else []


def count_token_rows(listing: ModelListing) -> dict[str, int]:
    """Return the number of rows of each tensor with one row per token.

    The keys are the last two parts of the names, which are the same whatever prefix a checkpoint uses.
    """
    tensors = {**listing.tensors, **(listing.adapter.tensors if listing.adapter is not None else {})}
    tensors = {unwrapped_name(name): source for name, source in tensors.items()}
    by_token = sorted(find_token_tensors(tensors, listing.config))
    return {last_parts(name): tensors[name].shape[0] for name in by_token}


def last_parts(name: str) -> str:
    """Return the last two parts of a tensor's name."""
    return ".".join(name.split(".")[-2:])


def count_rows(vocabulary: Vocabulary) -> int:
    """Return the number of rows that a vocabulary needs: the largest row + 1."""
    return max(vocabulary.values(), default=-1) + 1


def take_first_rows(source: TensorSource, num_rows: int) -> TensorSource:
    """Return the first rows of a tensor: of a stored one, a shorter range of the same bytes."""
    return select(source, 0, 0, num_rows)


def map_rows(
    output: Vocabulary, own: Vocabulary, output_rows: int, own_rows: int, *, keep_padding: bool = True
) -> Rows | None:
    """Return where the rows of a tensor go in the output; None when every row keeps its place.

    Rows are matched by token. Padding rows, which belong to no token of either vocabulary, keep their place.

    Parameters
    ----------
    output, own : vocabularies of the output and of the tensor
    output_rows, own_rows : rows of the output's tensor and of this one, padding included
    keep_padding : whether padding rows are mapped
    """
    pairs = [
        (row, own[token])
        for token, row in output.items()
        if token in own and row < output_rows and own[token] < own_rows
    ]
    first_padding = max(count_rows(output), count_rows(own))
    if keep_padding:
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


def without_rows(rows: Rows | None, dropped: Collection[int], num_rows: int) -> Rows | None:
    """Return runs of rows without some output rows.

    Parameters
    ----------
    rows : None for all rows in their place
    """
    if not dropped:
        return rows
    spans = rows if rows is not None else ((0, 0, num_rows),)
    return _merge_adjacent(
        (start + offset, own + offset)
        for start, own, length in spans
        for offset in range(length)
        if start + offset not in dropped
    )
