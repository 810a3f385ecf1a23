"""Read vocabularies, token to row, from tokenizer files, without running a tokenizer.

tokenizer.json contains the whole vocabulary. Where it is missing, vocab.json or vocab.txt is read, with
added_tokens.json. A SentencePiece model alone is not read: its vocabulary is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...errors import CheckpointError
from ...formats.file_names import TOKENIZER_NAME
from ...listing import ModelListing

Vocabulary = Mapping[str, int]

_MAX_TOKENS = 10_000_000
_FILE_SETS = ((TOKENIZER_NAME,), ("vocab.json", "added_tokens.json"), ("vocab.txt", "added_tokens.json"))


def vocabulary_files(listing: ModelListing) -> list[str]:
    """Return the URIs of the files that contain the vocabulary; empty where there are none."""
    for names in _FILE_SETS:
        if names[0] in listing.side_files:
            return [listing.side_files[name] for name in names if name in listing.side_files]
    return []


def read_vocabulary(listing: ModelListing, contents: Mapping[str, bytes]) -> Vocabulary | None:
    """Return the row of each token, None when unknown.

    Parameters
    ----------
    contents : content of the files of `vocabulary_files` by URI

    Raises
    ------
    CheckpointError : a tokenizer file is malformed
    """
    uris = vocabulary_files(listing)
    if not uris or uris[0] not in contents:
        return None
    vocabulary: dict[str, int] = {}
    for uri in uris:
        if uri in contents:
            vocabulary.update(_parse(uri, contents[uri]))
    if len(vocabulary) > _MAX_TOKENS or any(not 0 <= index < _MAX_TOKENS for index in vocabulary.values()):
        raise CheckpointError(
            f"{uris[0]}: has a row or a number of tokens outside of 0 to {_MAX_TOKENS}; repair the file"
        )
    return vocabulary


def _parse(uri: str, content: bytes) -> dict[str, int]:
    try:
        text = content.decode()
        if uri.endswith(".txt"):
            return {token: row for row, token in enumerate(text.splitlines())}
        found = json.loads(text)
        pairs = _tokenizer_json_pairs(found) if uri.endswith(TOKENIZER_NAME) else list(found.items())
        vocabulary = {str(token): row for token, row in pairs if type(row) is int}
        if len(vocabulary) < len({token for token, _ in pairs}):
            raise ValueError("a row is not an integer")
        return vocabulary
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{uri}: is not a valid tokenizer file ({type(error).__name__}); repair the file"
        ) from None


def _tokenizer_json_pairs(found: Any) -> list[tuple[Any, Any]]:
    """Return (token, row) pairs, not checked yet."""
    vocabulary: Any = found["model"]["vocab"]
    pairs: list[tuple[Any, Any]]
    if isinstance(vocabulary, list):  # Unigram: [[piece, score], ...]
        pairs = [(entry[0], row) for row, entry in enumerate(cast("list[Any]", vocabulary))]
    else:
        pairs = list(vocabulary.items())
    return pairs + [(entry["content"], entry["id"]) for entry in found.get("added_tokens") or ()]


def add_tokens(content: bytes, added: Sequence[tuple[str, int]], donors: Sequence[bytes]) -> bytes:
    """Return a tokenizer.json with tokens appended to `added_tokens`.

    Parameters
    ----------
    content : the base's tokenizer.json, valid
    added : (token, row) of each new token
    donors : tokenizer.json of the models that the tokens come from; the options of their added tokens are copied
    """
    tokenizer = json.loads(content)
    donor_entries: dict[str, dict[str, Any]] = {}
    for donor in donors:
        for entry in json.loads(donor).get("added_tokens") or ():
            donor_entries.setdefault(entry["content"], entry)
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    entries = tokenizer.setdefault("added_tokens", [])
    for token, row in added:
        copied = {key: value for key, value in donor_entries.get(token, {}).items() if key not in ("id", "content")}
        entries.append({"id": row, "content": token, **defaults, **copied})
    return json.dumps(tokenizer, ensure_ascii=False, indent=2).encode()
