"""Fit embeddings and output projections of models with different vocabularies to the output's rows.

tokenizer_source   rows of the output                     an expert's rows
(not given)        the base's                             unchanged; an expert that only appended rows is cut, with a
                                                          warning; any other difference is an error
base               the base's                             matched by token
union              the base's, then the experts' new ones matched by token
a model            that model's                           matched by token

An expert that lacks a token uses the base's row. A row that the base lacks starts from the mean of the experts that
have it, as in mergekit. Vocabularies are read from tokenizer files; an unknown one is taken to equal the base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from ....errors import RecipeError, ShapeError
from ....formats.dtypes import FLOAT8_DTYPES
from ....formats.file_names import TOKENIZER_NAME
from ....listing import ModelListing, TensorSource
from ....recipe.recipe import Recipe
from ....views import reshape
from ...inputs.tokenizers import Vocabulary, read_vocabulary, vocabulary_files
from ...names import layer_of
from ...plan import Rows
from .token_rows import (
    FittedTensor,
    count_rows,
    count_token_rows,
    find_token_columns,
    find_token_tensors,
    last_parts,
    map_rows,
    take_first_rows,
    without_rows,
)
from .vocabulary_union import extend_tokenizer_json, unite_vocabularies


def tokenizer_files_needed(
    recipe: Recipe,
    base: ModelListing | None,
    experts: Sequence[ModelListing],
    tokenizer: ModelListing | None = None,
) -> list[str]:
    """Return the URIs of the small files whose content `plan_merge` takes as `side_file_contents`.

    Empty unless tokenizer_source is set or the number of rows of an expert's embeddings differs from the base's.

    Parameters
    ----------
    tokenizer : listing of `recipe.vocabulary_source`, where that is a model
    """
    reference = base if base is not None else experts[0]
    rows = count_token_rows(reference)

    def differs(expert: ModelListing) -> bool:
        stored = [*expert.tensors.items(), *(expert.adapter.tensors.items() if expert.adapter is not None else ())]
        outside = ((last_parts(name), source.shape) for name, source in stored if layer_of(name) is None)
        return any(shape and rows.get(name, shape[0]) != shape[0] for name, shape in outside)

    needed = [expert for expert in experts if recipe.vocabulary_source is not None or differs(expert)]
    if not needed:
        return []
    models = [reference, *needed, *([tokenizer] if tokenizer is not None else [])]
    return list(dict.fromkeys(uri for model in models for uri in vocabulary_files(model)))


@dataclass(frozen=True, slots=True)
class ConfiguredRow:
    """A row that `tokenizer.tokens` takes from one model.

    row : of the output
    expert : index of the model among the experts, None for the base
    own : row of that model; None for zeros
    """

    row: int
    expert: int | None
    own: int | None


@final
class VocabularyPlanner:
    """Fits tensors with one row per token to the output's vocabulary.

    tokenizer : the model whose tokenizer files are copied to the output
    matches_tokens : rows are matched by token, even where their number is the same
    warnings : one per expert whose rows are cut, or whose vocabulary is unknown

    Raises
    ------
    RecipeError : a tokenizer file that tokenizer_source needs is missing
    CheckpointError : a tokenizer file is malformed
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
        self._vocabularies: dict[tuple[str, ...], Vocabulary | None] = {}
        self._rows: dict[tuple[int, int, int], Rows | None] = {}
        self._base = self._vocabulary(reference)
        self._output = self._base
        self._added: list[tuple[str, int]] = []
        self._model_rows = 0  # of the model that tokenizer_source names, its padding included
        self.tokenizer = reference
        self.matches_tokens = self._source is not None
        self.warnings: list[str] = []
        if self._source == "union":
            vocabularies = [(expert, self._vocabulary(expert)) for expert in experts]
            union = unite_vocabularies(reference, self._base, vocabularies, contents)
            if union.added:
                self._output = union.vocabulary
            self._added += union.added
        elif self._source not in (None, "base"):
            assert tokenizer is not None, "the model of tokenizer_source is listed"
            self._output = self._vocabulary(tokenizer)
            self._model_rows = max(count_token_rows(tokenizer).values(), default=0)
            self.tokenizer = tokenizer
            if self._output is None:
                raise RecipeError(
                    f"tokenizer_source: {self._source} has no tokenizer.json or vocabulary file; use base"
                )
            if self._base is None:
                raise RecipeError(f"tokenizer_source: {reference.name} has no tokenizer.json or vocabulary file")

        self._tokens = recipe.tokenizer.tokens or {} if recipe.tokenizer is not None else {}
        self._multiple = recipe.tokenizer.pad_to_multiple_of if recipe.tokenizer is not None else None
        if self._tokens or self._multiple:
            self._add_configured_tokens()
        known = {name: index for index, name in reversed(list(enumerate(recipe.expert_references)))}
        self._models = {**known, recipe.base_model: None}
        self._token_tensors = find_token_tensors(reference.tensors, reference.config)
        self._token_columns = find_token_columns(reference.tensors, self._token_tensors)

    def _add_configured_tokens(self) -> None:
        if self._output is None:
            raise RecipeError(
                f"tokenizer: tokens and pad_to_multiple_of need the vocabulary, and {self.tokenizer.name} has no"
                " tokenizer.json or vocabulary file"
            )
        first = count_rows(self._output)
        added = [token for token in self._tokens if token not in self._output]
        if added and self.tokenizer.side_files.get(TOKENIZER_NAME, "") not in self._contents:
            raise RecipeError(f"tokenizer.tokens: {added[0]!r} is new, and {self.tokenizer.name} has no tokenizer.json")
        if added:
            rows = [(token, first + index) for index, token in enumerate(added)]
            self._output = {**self._output, **dict(rows)}
            self._added += rows

    def is_by_token(self, name: str) -> bool:
        """Return whether a tensor of the reference has one row per token."""
        return name in self._token_tensors

    def has_column_per_token(self, name: str) -> bool:
        """Return whether a tensor of the reference is a bias (1, V) with one column per token."""
        return name in self._token_columns

    def check_columns_stay(self, name: str, source: TensorSource) -> None:
        """Check that the output has the base's tokens, where a bias of the base has one column for each.

        Raises
        ------
        RecipeError : the tokens change
        """
        columns = source.shape[1]
        if self.output_rows(columns) != columns or self.fit_base(reshape(source, (columns,))).rows is not None:
            raise RecipeError(
                f"{name}: has one column for each of {columns} tokens, found other tokens in the output; set"
                " `tokenizer_source: base`"
            )

    def fit_columns(self, name: str, expert: int, source: TensorSource, base_columns: int) -> FittedTensor:
        """Return one expert's bias (1, V) in the base's columns.

        Raises
        ------
        ShapeError : the columns would have to be moved, or some are missing
        """
        fitted = self.fit_expert(name, expert, reshape(source, source.shape[1:]), base_columns)
        if fitted.rows is not None or fitted.source.shape != (base_columns,):
            raise ShapeError(
                f"{name}: {self._experts[expert].name} has shape {list(source.shape)}, the base has"
                f" [1, {base_columns}], and its tokens are others than the base's first ones; give an expert with the"
                f" base's tokens, or add a rule {{match: {name!r}, action: keep_base}}"
            )
        return FittedTensor(reshape(fitted.source, (1, base_columns)), None)

    @property
    def padding_start(self) -> int | None:
        """The first row that `pad_to_multiple_of` adds, None where it is not set."""
        return count_rows(self._output) if self._multiple is not None and self._output is not None else None

    def configured_rows(self) -> list[ConfiguredRow]:
        """Return the rows whose source the recipe names, by output row.

        Raises
        ------
        RecipeError : the source lacks the token
        """
        found: list[ConfiguredRow] = []
        for token, options in self._tokens.items():
            assert self._output is not None
            source, row = options.source, self._output[token]
            if source.kind == "zero":
                found.append(ConfiguredRow(row, None, None))
                continue
            index = self._models[source.model]
            listing = self._reference if index is None else self._experts[index]
            own = source.token_id
            if own is None:
                wanted = source.token or token
                vocabulary = self._vocabulary(listing)
                vocabulary = self._base if vocabulary is None else vocabulary
                own = vocabulary.get(wanted) if vocabulary is not None else None
                if own is None:
                    raise RecipeError(
                        f"tokenizer.tokens.{token}: {listing.name} has no token {wanted!r}; name another source"
                    )
            found.append(ConfiguredRow(row, index, own))
        return sorted(found, key=lambda one: one.row)

    @property
    def _forced(self) -> frozenset[int]:
        output = self._output or {}
        return frozenset(output[token] for token, options in self._tokens.items() if options.force)

    def _vocabulary(self, listing: ModelListing) -> Vocabulary | None:
        # By the files: a model and the same model with an adapter, which may have its own, are at one address.
        files = tuple(vocabulary_files(listing))
        if files not in self._vocabularies:
            self._vocabularies[files] = read_vocabulary(listing, self._contents)
        return self._vocabularies[files]

    def moved_rows(self) -> dict[int, int | None] | None:
        """Return the output's row of each row of the base whose token moves, None for a token that the output lacks.

        None where no token moves.
        """
        if self._base is None or self._output is None or self._output is self._base:
            return None
        moved = {row: self._output.get(token) for token, row in self._base.items() if self._output.get(token) != row}
        return moved or None

    def tokenizer_json(self) -> bytes | None:
        """Return the output's tokenizer.json, None where it equals that of `tokenizer`."""
        if not self._added:
            return None
        return extend_tokenizer_json(self._added, self.tokenizer, self._experts, self._contents)

    def output_rows(self, base_rows: int) -> int:
        """Return the number of rows of an output tensor, of which the base has `base_rows`."""
        if self._multiple is not None:
            assert self._output is not None, "checked at construction"
            return -(-count_rows(self._output) // self._multiple) * self._multiple
        if self._output is None or self._output is self._base:
            return base_rows
        return max(count_rows(self._output), self._model_rows or base_rows)

    def fit_base(self, source: TensorSource) -> FittedTensor:
        """Return the base's tensor with its rows in the output."""
        base_rows = source.shape[0]
        output_rows = self.output_rows(base_rows)
        keeps = self._multiple is None
        if self._output is None or self._base is None or (self._output is self._base and keeps):
            return FittedTensor(source, without_rows(None, self._forced, base_rows))
        if self._source not in (None, "base", "union"):
            rows = map_rows(self._output, self._base, output_rows, base_rows, keep_padding=keeps)
            return FittedTensor(source, without_rows(rows, self._forced, output_rows))
        # New tokens take the rows after the base's vocabulary, instead of the base's padding there.
        first_new = count_rows(self._base)
        first_padding = max(first_new, count_rows(self._output))
        spans = [(0, min(first_new, base_rows)), (first_padding, base_rows if keeps else 0)]
        rows = tuple((start, start, stop - start) for start, stop in spans if stop > start)
        rows = without_rows(rows, self._forced, output_rows)
        return FittedTensor(source, None if rows == ((0, 0, output_rows),) and base_rows == output_rows else rows)

    def fit_expert(self, name: str, expert: int, source: TensorSource, base_rows: int) -> FittedTensor:
        """Return one expert's tensor with its rows in the output.

        Parameters
        ----------
        name : of the output tensor, for errors
        expert : index of the expert
        base_rows : rows of the base's tensor

        Raises
        ------
        ShapeError : the numbers of rows differ, and it is unknown which rows correspond
        """
        own_rows, output_rows = source.shape[0], self.output_rows(base_rows)
        key = (expert, own_rows, base_rows)
        if key not in self._rows:
            rows = self._expert_rows(name, expert, own_rows, base_rows, output_rows)
            self._rows[key] = without_rows(rows, self._forced, output_rows)
        rows = self._rows[key]
        if rows == ((0, 0, output_rows),) and source.dtype not in FLOAT8_DTYPES:
            return FittedTensor(take_first_rows(source, output_rows), None)
        return FittedTensor(source, rows)

    def _expert_rows(self, name: str, expert: int, own_rows: int, base_rows: int, output_rows: int) -> Rows | None:
        own = self._vocabulary(self._experts[expert])
        model = self._experts[expert].name
        if not self.matches_tokens:
            if own_rows == base_rows:
                return None
            self._check_appended(name, model, own, own_rows, base_rows)
            effect = "left out" if own_rows > base_rows else "counted as the base's"
            self.warnings.append(
                f"{model} has {own_rows} rows in its vocabulary, the base {base_rows}:"
                f" {abs(own_rows - base_rows)} are {effect}"
            )
            return ((0, 0, min(own_rows, base_rows)),)
        if own is None and self._multiple is not None:
            own = self._base
        if own is None or self._output is None:
            if own_rows != base_rows:
                self.warnings.append(f"{model}: vocabulary unknown, its first rows count as the base's")
            return None if own_rows == output_rows else ((0, 0, min(own_rows, output_rows)),)
        return map_rows(self._output, own, output_rows, own_rows, keep_padding=self._multiple is None)

    def _check_appended(self, name: str, model: str, own: Vocabulary | None, own_rows: int, base_rows: int) -> None:
        """Check that the rows that both have belong to the same tokens."""
        place = f"{name}: {model} has {own_rows} rows, the base has {base_rows}"
        if own is None or self._base is None:
            raise ShapeError(
                f"{place}, and without tokenizer files it is unknown which rows correspond;"
                " set `tokenizer_source: base` to take the first rows"
            )
        for token, row in self._base.items():
            if row < min(own_rows, base_rows) and own.get(token, row) != row:
                raise ShapeError(
                    f"{place}, and their tokenizers differ (token {token!r} is row {row} and {own[token]});"
                    " set `tokenizer_source: base`, or union, to match rows by token"
                )
