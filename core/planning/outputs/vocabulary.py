"""Models whose vocabularies differ: which rows of embeddings and output projection belong together.

tokenizer_source   rows of the output                     an expert's rows
(not given)        the base's                             as they are; an expert that only appended rows is cut, with a
                                                          warning; anything else is refused
base               the base's                             by token
union              the base's, then the experts' new ones by token
a model            that model's                           by token

An expert that lacks a token counts as the base there. A token that the base lacks starts from the mean of the experts
that have it, as in mergekit. Vocabularies come from tokenizer files; an unknown one counts as the base's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from ...errors import RecipeError, ShapeError
from ...formats.dtypes import FLOAT8_DTYPES
from ...formats.file_names import TOKENIZER_NAME
from ...listing import ModelListing, TensorSource
from ...recipe.recipe import Recipe
from ..inputs.tokenizers import Vocabulary, read_vocabulary, vocabulary_files, with_added_tokens
from ..plan import Rows

_ROWS_BY_TOKEN = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|shared|embed_in|token_embedding|lm_head|embed_out"
    r"|cls\.predictions\.decoder|vocab_projector)\.(weight|bias)$|(^|\.)cls\.predictions\.bias$|^output\.weight$"
)


def is_row_by_token(name: str) -> bool:
    """True for tensors whose first dimension is the vocabulary (position and type embeddings are not)."""
    return bool(_ROWS_BY_TOKEN.search(name))


def tokenizer_files_needed(
    recipe: Recipe,
    base: ModelListing | None,
    experts: Sequence[ModelListing],
    tokenizer: ModelListing | None = None,
) -> list[str]:
    """URIs of the small files whose content `plan_merge` wants as `side_file_contents`.

    None unless tokenizer_source is set or an expert's embeddings have other shapes than the base's.

    Parameters
    ----------
    tokenizer : listing of `recipe.vocabulary_source`, where that is a model
    """
    reference = base if base is not None else experts[0]
    rows = _token_rows(reference)
    explicit = recipe.vocabulary_source is not None
    asked = [expert for expert in experts if explicit or _differs(rows, _token_rows(expert))]
    if not asked:
        return []
    models = [reference, *asked, *([tokenizer] if tokenizer is not None else [])]
    return list(dict.fromkeys(uri for model in models for uri in vocabulary_files(model)))


def _token_rows(listing: ModelListing) -> dict[str, int]:
    """Rows by the last part of the name, which survives a prefix."""
    tensors = {**listing.tensors, **(listing.adapter.tensors if listing.adapter is not None else {})}
    named = ((name, source) for name, source in tensors.items() if is_row_by_token(name) and source.shape)
    return {".".join(name.split(".")[-2:]): source.shape[0] for name, source in named}


def _differs(reference: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return any(name in reference and reference[name] != rows for name, rows in other.items())


@dataclass(frozen=True, slots=True)
class Fit:
    """How one stored tensor goes into the output's rows.

    rows : None when every row stays where it is
    """

    source: TensorSource
    rows: Rows | None

    @property
    def mark(self) -> str:
        """For keys; empty when nothing was done."""
        return f"#{self.source.shape[0]}{list(self.rows) if self.rows is not None else ''}"


@final
class VocabularyPlanner:
    """Fits tensors with one row per token to the output's vocabulary.

    Raises
    ------
    RecipeError : tokenizer_source asks for what the tokenizer files do not allow
    CheckpointError : a tokenizer file is damaged
    """

    def __init__(
        self,
        recipe: Recipe,
        reference: ModelListing,
        experts: Sequence[ModelListing],
        tokenizer: ModelListing | None,
        contents: Mapping[str, bytes],
    ) -> None:
        self._reference = reference
        self._experts = experts
        self._contents = contents
        self._source = recipe.vocabulary_source
        self.warnings: list[str] = []
        self._known: dict[str, Vocabulary | None] = {}
        self._fits: dict[tuple[int, int, int], Rows | None] = {}
        self._own = self._vocabulary(reference)
        self._added: list[tuple[str, int]] = []
        self._tokenizer = reference
        self._model_rows = 0  # of the model that gives the tokenizer, its padding included
        self.output = self._own
        if self._source == "union":
            self.output = self._union()
        elif self._source not in (None, "base"):
            assert tokenizer is not None, "the model of tokenizer_source is listed"
            self.output = self._vocabulary(tokenizer)
            self._tokenizer = tokenizer
            self._model_rows = max(_token_rows(tokenizer).values(), default=0)
            if self.output is None:
                raise RecipeError(
                    f"tokenizer_source: {self._source} has no tokenizer.json or vocabulary file; use base"
                )
            if self._own is None:
                raise RecipeError(f"tokenizer_source: {reference.name} has no tokenizer.json or vocabulary file")

    @property
    def tokenizer(self) -> ModelListing:
        """The model whose tokenizer files go into the output."""
        return self._tokenizer

    @property
    def goes_by_token(self) -> bool:
        """True when rows are matched although their number may agree."""
        return self._source is not None

    def tokenizer_json(self) -> bytes | None:
        """The output's tokenizer.json where it is none of the inputs'."""
        if not self._added:
            return None
        uris = [model.side_files.get(TOKENIZER_NAME, "") for model in (self._reference, *self._experts)]
        contents = [self._contents[uri] for uri in dict.fromkeys(uris) if uri in self._contents]
        return with_added_tokens(contents[0], self._added, contents[1:])

    def output_rows(self, rows: int) -> int:
        """Rows of an output tensor of which the base has `rows`."""
        if self._source in (None, "base") or self.output is None:
            return rows
        if self.output is self._own:
            return rows
        return max(len_of(self.output), rows if self._source == "union" else self._model_rows)

    def fit_base(self, source: TensorSource) -> Fit:
        """The base's tensor in the output's rows."""
        rows = source.shape[0]
        if self.output is self._own or self.output is None or self._own is None:
            return Fit(source, None)
        target = self.output_rows(rows)
        if self._source == "union":
            first_new = len_of(self._own)
            spans = [(0, 0, min(first_new, rows))]
            spans += [(first_new + len(self._added), first_new + len(self._added), rows)]
            kept = tuple((start, origin, stop - start) for start, origin, stop in spans if stop > start)
            return Fit(source, None if kept == ((0, 0, target),) else kept)
        return Fit(source, _runs(_by_token(self.output, self._own, target, rows), target, rows))

    def fit_expert(self, name: str, expert: int, source: TensorSource, base_rows: int) -> Fit:
        """One expert's tensor in the output's rows.

        Raises
        ------
        ShapeError : rows differ, and nothing says which belong together
        """
        rows, target = source.shape[0], self.output_rows(base_rows)
        key = (expert, rows, base_rows)
        if key not in self._fits:
            self._fits[key] = self._expert_rows(name, expert, rows, base_rows, target)
        found = self._fits[key]
        if found is not None and len(found) == 1 and found[0] == (0, 0, target) and source.dtype not in FLOAT8_DTYPES:
            return Fit(first_rows(source, target), None)  # a shorter range of the same bytes
        return Fit(source, found)

    def _expert_rows(self, name: str, expert: int, rows: int, base_rows: int, target: int) -> Rows | None:
        own = self._vocabulary(self._experts[expert])
        model = self._experts[expert].name
        if not self.goes_by_token:
            if rows == base_rows:
                return None
            self._check_appended(name, model, own, rows, base_rows)
            more, less = max(rows, base_rows), min(rows, base_rows)
            what = "left out" if rows > base_rows else "counted as the base's"
            self.warnings.append(
                f"{model} has {rows} rows in its vocabulary, the base {base_rows}: {more - less} are {what}"
            )
            return ((0, 0, less),)
        if own is None or self.output is None:
            if rows != base_rows:
                self.warnings.append(f"{model}: vocabulary unknown, its first rows count as the base's")
            return None if rows == target else ((0, 0, min(rows, target)),)
        return _runs(_by_token(self.output, own, target, rows), target, rows)

    def _check_appended(self, name: str, model: str, own: Vocabulary | None, rows: int, base_rows: int) -> None:
        where = f"{name}: {model} has {rows} rows, the base has {base_rows}"
        if own is None or self._own is None:
            raise ShapeError(
                f"{where}, and without their tokenizer files nothing says which belong together;"
                " set `tokenizer_source: base` to take the first rows"
            )
        for token, row in self._own.items():
            if row < min(rows, base_rows) and own.get(token, row) != row:
                raise ShapeError(
                    f"{where}, and their tokenizers differ (token {token!r} is row {row} and {own[token]});"
                    " set `tokenizer_source: base`, or union, to match rows by token"
                )

    def _union(self) -> Vocabulary | None:
        if self._own is None:
            raise RecipeError(
                f"tokenizer_source: union: {self._reference.name} has no tokenizer.json to extend; use base"
            )
        union = dict(self._own)
        position = len_of(union)
        for expert in self._experts:
            rows = max(_token_rows(expert).values(), default=0)  # 0: an adapter that leaves the embeddings alone
            for token, row in sorted((self._vocabulary(expert) or {}).items(), key=lambda item: item[1]):
                if token not in union and row < rows:
                    union[token] = position
                    self._added.append((token, position))
                    position += 1
        if not self._added:
            return self._own
        if self._reference.side_files.get(TOKENIZER_NAME, "") not in self._contents:
            raise RecipeError(
                f"tokenizer_source: union: {self._reference.name} has no tokenizer.json to extend; use base"
            )
        return union

    def _vocabulary(self, listing: ModelListing) -> Vocabulary | None:
        if listing.uri not in self._known:
            self._known[listing.uri] = read_vocabulary(listing, self._contents)
        return self._known[listing.uri]


def len_of(vocabulary: Vocabulary) -> int:
    """Rows that a vocabulary takes."""
    return max(vocabulary.values(), default=-1) + 1


def first_rows(source: TensorSource, rows: int) -> TensorSource:
    """The same stored tensor without its last rows: they lie together, so it is a shorter range of bytes."""
    per_row = source.num_bytes // source.shape[0]
    return replace(source, stop=source.start + rows * per_row, shape=(rows, *source.shape[1:]))


def _by_token(output: Vocabulary, own: Vocabulary, target: int, rows: int) -> Iterable[tuple[int, int]]:
    """(output row, own row) of every token that both have; padding rows that are no token anywhere stay in place."""
    yield from (
        (row, own[token]) for token, row in output.items() if token in own and row < target and own[token] < rows
    )
    first_padding = max(len_of(output), len_of(own))
    yield from ((row, row) for row in range(first_padding, min(target, rows)))


def _runs(pairs: Iterable[tuple[int, int]], target: int, rows: int) -> Rows | None:
    """Runs (output row, own row, length), sorted; None when every row stays where it is."""
    runs: list[list[int]] = []
    for row, own in sorted(pairs):
        if runs and runs[-1][0] + runs[-1][2] == row and runs[-1][1] + runs[-1][2] == own:
            runs[-1][2] += 1
        elif not runs or row >= runs[-1][0] + runs[-1][2]:  # two tokens with one row: the first
            runs.append([row, own, 1])
    found = tuple((row, own, length) for row, own, length in runs)
    return None if found == ((0, 0, target),) and rows == target else found
