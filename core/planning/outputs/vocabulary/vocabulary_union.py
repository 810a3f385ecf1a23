"""`tokenizer_source: union`: the base's vocabulary, extended by the tokens that only experts have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....errors import RecipeError
from ....formats.file_names import TOKENIZER_NAME
from ....listing import ModelListing
from ...inputs.tokenizers import Vocabulary, add_tokens
from .token_rows import count_rows, count_token_rows


@dataclass(frozen=True, slots=True)
class VocabularyUnion:
    """The vocabulary of the output.

    added : tokens that the base lacks with their rows, which follow those of the base
    """

    vocabulary: Vocabulary
    added: tuple[tuple[str, int], ...]


def unite_vocabularies(
    reference: ModelListing,
    reference_vocabulary: Vocabulary | None,
    experts: Sequence[tuple[ModelListing, Vocabulary | None]],
    contents: Mapping[str, bytes],
) -> VocabularyUnion:
    """Return the reference's vocabulary, then each expert's new tokens by row, expert after expert.

    Tokens without a row in the expert's embeddings are left out. An expert of unknown vocabulary adds none.

    Parameters
    ----------
    reference : the base, or the first model
    contents : content of the tokenizer files by URI

    Raises
    ------
    RecipeError : the reference has no vocabulary, or tokens are added and it has no tokenizer.json
    """
    error = RecipeError(f"tokenizer_source: union: {reference.name} has no tokenizer.json to extend; use base")
    if reference_vocabulary is None:
        raise error
    union = dict(reference_vocabulary)
    first_new = count_rows(union)
    added: list[tuple[str, int]] = []
    for listing, vocabulary in experts:
        num_rows = max(count_token_rows(listing).values(), default=0)  # 0: an adapter that does not change embeddings
        for token, row in sorted((vocabulary or {}).items(), key=lambda item: item[1]):
            if token not in union and row < num_rows:
                union[token] = first_new + len(added)
                added.append((token, union[token]))
    if added and reference.side_files.get(TOKENIZER_NAME, "") not in contents:
        raise error
    return VocabularyUnion(union, tuple(added))


def extend_tokenizer_json(
    added: Sequence[tuple[str, int]],
    reference: ModelListing,
    experts: Sequence[ModelListing],
    contents: Mapping[str, bytes],
) -> bytes | None:
    """Return the reference's tokenizer.json with the added tokens; None when no token is added."""
    if not added:
        return None
    uris = [model.side_files.get(TOKENIZER_NAME, "") for model in (reference, *experts)]
    own, *donors = [contents[uri] for uri in dict.fromkeys(uris) if uri in contents]
    return add_tokens(own, added, donors)
