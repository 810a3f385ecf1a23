"""Names across checkpoints: prefixes that differ, and tied weights that one checkpoint stores and another does not.

The reference (base, or first expert) gives the names of the output. Every other checkpoint is asked for those names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...listing import TensorSource

_MOST_REPLACEMENTS = 4  # a vision-language model can differ in the prefixes of tower, projector and language model
_DEEPEST_PREFIX = 3

# Names that one weight goes by where a model shares it. Whoever stores one of them has stored them all.
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


@dataclass(frozen=True, slots=True)
class NameMap:
    """How a checkpoint writes the reference's names.

    replacements : (reference prefix, its prefix), tried in order after the name itself
    """

    replacements: tuple[tuple[str, str], ...]
    stored: Mapping[str, str]  # reference name to stored name

    def find(self, name: str, names: Mapping[str, object]) -> str | None:
        """The stored name, also of a layer that the reference does not have."""
        known = self.stored.get(name)
        if known is not None:
            return known
        if name in names:
            return name
        for reference, own in self.replacements:
            if name.startswith(reference) and own + name[len(reference) :] in names:
                return own + name[len(reference) :]
        return None

    def describe(self) -> str:
        parts = [f"{own or '(none)'!r} for {reference or '(none)'!r}" for reference, own in self.replacements]
        return "names matched with prefix " + ", ".join(parts)


def match_names(reference: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> NameMap:
    """Find each reference name in a checkpoint, through prefix replacements where the plain names do not fit.

    A replacement is believed when it finds names and the shapes agree (but for one in ten, which may be a resized
    vocabulary); a stored tensor answers to one name only, so the layers of an encoder never stand in for a decoder's.

    Cost: O(T) when the names agree, else O(P T) for the P <= 49 pairs of prefixes that occur.

    Parameters
    ----------
    reference, stored : name to shape
    """
    found = {name: name for name in reference if name in stored}
    replacements: list[tuple[str, str]] = []
    missing = [name for name in reference if name not in found]
    while missing and len(replacements) < _MOST_REPLACEMENTS:
        taken = set(found.values())
        free = [name for name in stored if name not in taken]
        best = _best_replacement(missing, free, reference, stored) if free else None
        if best is None:
            break
        (own_reference, own_stored), matches = best
        replacements.append((own_reference, own_stored))
        found.update(matches)
        missing = [name for name in missing if name not in matches]
    return NameMap(tuple(replacements), found)


def _best_replacement(
    missing: list[str],
    free: list[str],
    reference: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[str, str], dict[str, str]] | None:
    free_names = set(free)
    best: tuple[tuple[str, str], dict[str, str]] | None = None
    for own_reference in _prefixes(missing):
        tails = [(name, name[len(own_reference) :]) for name in missing if name.startswith(own_reference)]
        for own_stored in _prefixes(free):
            if own_reference == own_stored:
                continue
            matches = {name: own_stored + tail for name, tail in tails if own_stored + tail in free_names}
            if not matches or (best is not None and len(matches) <= len(best[1])):
                continue
            fitting = sum(reference[name] == stored[other] for name, other in matches.items())
            if fitting * 10 >= len(matches) * 9:
                best = ((own_reference, own_stored), matches)
    return best


def _prefixes(names: list[str]) -> list[str]:
    """The empty prefix and the leading components that occur, most frequent first, at most 7."""
    counts: dict[str, int] = {}
    for name in names:
        end = -1
        for _ in range(_DEEPEST_PREFIX):
            end = name.find(".", end + 1)
            if end < 0:
                break
            prefix = name[: end + 1]
            if prefix[:-1].rpartition(".")[2].isdigit():
                break
            counts[prefix] = counts.get(prefix, 0) + 1
    frequent = sorted(counts, key=lambda prefix: (-counts[prefix], prefix))
    return ["", *frequent[:6]]


def tied_alternatives(name: str, shape: tuple[int, ...], sources: Mapping[str, TensorSource]) -> str | None:
    """The stored name under which a weight that `name` is tied to can be found, same columns; None if there is none."""
    for group in _TIED:
        if group.search(name):
            for other, source in sources.items():
                if other != name and group.search(other) and source.shape[1:] == shape[1:]:
                    return other
    return None
