"""Weights that are stored under the name of another weight."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...listing import TensorSource

# Names of one shared weight. A checkpoint that stores one of them stores all of them.
_TIED_SUFFIXES = (
    (
        "lm_head.weight",
        "embed_out.weight",
        "embed_tokens.weight",
        "wte.weight",
        "shared.weight",
        "tok_embeddings.weight",
        "embed_in.weight",
    ),
    ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("vocab_projector.weight", "embeddings.word_embeddings.weight"),
)
_TIED = tuple(re.compile("|".join(rf"(?:^|\.){re.escape(name)}$" for name in group)) for group in _TIED_SUFFIXES)


def find_tied_weight(name: str, shape: tuple[int, ...], sources: Mapping[str, TensorSource]) -> str | None:
    """Return the stored name of a weight that `name` is tied to, with equal columns; None if there is none."""
    for group in _TIED:
        if group.search(name):
            for other, source in sources.items():
                if other != name and group.search(other) and source.shape[1:] == shape[1:]:
                    return other
    return None
