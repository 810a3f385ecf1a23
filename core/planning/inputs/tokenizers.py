"""Vocabularies read off tokenizer files: token to row. Nothing of a tokenizer is run.

tokenizer.json (any model type) says everything; vocab.json or vocab.txt with added_tokens.json serve where it is
missing. A SentencePiece model alone is not read: its vocabulary counts as unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError
from ...formats.file_names import TOKENIZER_NAME
from ...listing import ModelListing

Vocabulary = Mapping[str, int]

_MOST_TOKENS = 10_000_000
_FILE_SETS = ((TOKENIZER_NAME,), ("vocab.json", "added_tokens.json"), ("vocab.txt", "added_tokens.json"))


def vocabulary_files(listing: ModelListing) -> list[str]:
    """URIs of the files that say what the vocabulary is; empty when it cannot be known."""
    for names in _FILE_SETS:
        if names[0] in listing.side_files:
            return [listing.side_files[name] for name in names if name in listing.side_files]
    return []


def read_vocabulary(listing: ModelListing, contents: Mapping[str, bytes]) -> Vocabulary | None:
    """Token to row, None when unknown.

    Raises
    ------
    CheckpointError : a tokenizer file is damaged
    """
    uris = vocabulary_files(listing)
    if not uris or uris[0] not in contents:
        return None
    vocabulary: dict[str, int] = {}
    for uri in uris:
        if uri in contents:
            vocabulary.update(_parse(uri, contents[uri]))
    if len(vocabulary) > _MOST_TOKENS or any(not 0 <= index < _MOST_TOKENS for index in vocabulary.values()):
        raise CheckpointError(f"{uris[0]}: rows of the vocabulary are not between 0 and {_MOST_TOKENS}")
    return vocabulary


def _parse(uri: str, content: bytes) -> dict[str, int]:
    try:
        text = content.decode()
        if uri.endswith(".txt"):
            return {token: row for row, token in enumerate(text.splitlines())}
        found = json.loads(text)
        pairs = _tokenizer_json(found) if uri.endswith(TOKENIZER_NAME) else list(found.items())
        vocabulary = {str(token): row for token, row in pairs if type(row) is int}
        if len(vocabulary) < len({token for token, _ in pairs}):
            raise ValueError("a row is not an integer")
        return vocabulary
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{uri} is no tokenizer file that can be read ({type(error).__name__})") from None


def _tokenizer_json(found: Any) -> list[tuple[str, int]]:
    vocabulary = found["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [[piece, score], ...]
        pairs = [(entry[0], row) for row, entry in enumerate(vocabulary)]
    else:
        pairs = list(vocabulary.items())
    return pairs + [(entry["content"], entry["id"]) for entry in found.get("added_tokens") or ()]


def with_added_tokens(content: bytes, added: Sequence[tuple[str, int]], donors: Sequence[bytes]) -> bytes:
    """A tokenizer.json with more tokens at its end.

    Parameters
    ----------
    content : of the base's tokenizer.json, already read once
    added : (token, row) of the new ones
    donors : tokenizer.json of the models that they come from; a token that is an added one there keeps its switches
    """
    tokenizer = json.loads(content)
    switches: dict[str, dict[str, Any]] = {}
    for donor in donors:
        for entry in json.loads(donor).get("added_tokens") or ():
            switches.setdefault(entry["content"], entry)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    entries = tokenizer.setdefault("added_tokens", [])
    entries += [{"id": row, "content": token, **plain, **_switches(switches.get(token))} for token, row in added]
    return json.dumps(tokenizer, ensure_ascii=False, indent=2).encode()


def _switches(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (entry or {}).items() if key not in ("id", "content")}
