"""Token ids in config.json and generation_config.json, where `tokenizer_source` names a model with other rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import cast, final

from ....formats.bounded_json import LONGEST_CONFIG_BYTES, parse_json_object
from ....formats.file_names import GENERATION_CONFIG_NAME
from ....listing import ModelListing
from .fit_vocabulary import VocabularyPlanner

# eos_token_id, image_token_index, forced_bos_token_id, begin_suppress_tokens, ...
_ID_KEY = re.compile(r".*_token_(id|index|ids)|(begin_)?suppress_tokens")


@final
class TokenIds:
    """Changes the ids of tokens whose rows the output's vocabulary moves.

    A token that the output's vocabulary lacks has no id. Then the entry of the tokenizer's model is taken, or none.

    warnings : one per entry that is removed
    """

    def __init__(
        self,
        reference: ModelListing,
        tokenizer: ModelListing | None,
        vocabulary: VocabularyPlanner,
        contents: Mapping[str, bytes],
    ) -> None:
        self._reference = reference
        self._tokenizer = tokenizer
        self._rows = vocabulary.moved_rows() if tokenizer is not None else None
        self._contents = contents
        self.warnings: list[str] = []

    def config_changes(self) -> dict[str, object]:
        """Return the entries of config.json that change; None for one that is removed."""
        config = self._reference.config
        if self._rows is None or config is None:
            return {}
        other = (self._tokenizer.config if self._tokenizer is not None else None) or {}
        moved = self._moved(config, other, "config.json")
        return {key: value for key, value in moved.items() if value != config[key]}

    def generation_config(self) -> bytes | None:
        """Return the content of generation_config.json, None where it is the reference's."""
        own = self._read(self._reference)
        if self._rows is None or own is None:
            return None
        moved = self._moved(own, self._read(self._tokenizer) or {}, GENERATION_CONFIG_NAME)
        content = {key: value for key, value in moved.items() if value is not None or own[key] is None}
        return None if content == own else (json.dumps(content, indent=2) + "\n").encode()

    def _read(self, listing: ModelListing | None) -> Mapping[str, object] | None:
        uri = listing.side_files.get(GENERATION_CONFIG_NAME) if listing is not None else None
        if uri is None or uri not in self._contents:
            return None
        return parse_json_object(self._contents[uri], uri, LONGEST_CONFIG_BYTES, finite=False)

    def _moved(self, config: Mapping[str, object], other: Mapping[str, object], file: str) -> dict[str, object]:
        moved: dict[str, object] = {}
        for key, value in config.items():
            theirs = other.get(key)
            if isinstance(value, Mapping):
                inner = cast("Mapping[str, object]", theirs if isinstance(theirs, Mapping) else {})
                part = self._moved(cast("Mapping[str, object]", value), inner, file)
                known = cast("Mapping[str, object]", value)
                moved[key] = {name: one for name, one in part.items() if one is not None or known[name] is None}
            elif _ID_KEY.fullmatch(key):
                moved[key] = self._moved_ids(key, value, theirs, file)
            else:
                moved[key] = value
        return moved

    def _moved_ids(self, key: str, value: object, theirs: object, file: str) -> object:
        assert self._rows is not None
        ids = cast("list[object]", value) if isinstance(value, list) else [value]
        if not all(type(one) is int for one in ids):
            return cast("object", value)
        rows = [self._rows.get(cast("int", one), cast("int", one)) for one in ids]
        if None in rows:
            if theirs is None:
                self.warnings.append(
                    f"{file}: {key} is removed: the vocabulary of tokenizer_source has no such token; set it yourself"
                )
            return theirs
        return rows if isinstance(value, list) else rows[0]
