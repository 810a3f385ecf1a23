"""Match tensor names across checkpoints: different prefixes, and tied weights that only some checkpoints store.

The reference (the base, or the first expert) gives the names of the output. Every other checkpoint is searched for
these names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...listing import TensorSource

_MAX_REPLACEMENTS = 4  # a vision-language model may differ in the prefixes of tower, projector and language model
_MAX_PREFIX_PARTS = 3
_MAX_PREFIXES = 7

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


@dataclass(frozen=True, slots=True)
class NameMap:
    """The names of the reference's tensors in a checkpoint.

    replacements : (reference's prefix, checkpoint's prefix), tried in order after the unchanged name
    stored : the checkpoint's name by the reference's name
    """

    replacements: tuple[tuple[str, str], ...]
    stored: Mapping[str, str]

    def find(self, name: str, names: Mapping[str, object]) -> str | None:
        """Return the checkpoint's name for a reference name, also in a layer that the reference does not have.

        Parameters
        ----------
        names : the checkpoint's names, as keys
        """
        known = self.stored.get(name)
        if known is not None:
            return known
        if name in names:
            return name
        for reference_prefix, own_prefix in self.replacements:
            if name.startswith(reference_prefix) and own_prefix + name[len(reference_prefix) :] in names:
                return own_prefix + name[len(reference_prefix) :]
        return None

    def describe(self) -> str:
        """Return the replacements in words, for a warning."""
        parts = [f"{own or '(none)'!r} for {reference or '(none)'!r}" for reference, own in self.replacements]
        return "names matched with prefix " + ", ".join(parts)


def match_names(reference: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> NameMap:
    """Find each reference name in a checkpoint; replace prefixes where the unchanged names do not occur.

    A replacement is used if it finds names and at least nine in ten shapes agree (the others may have a resized
    vocabulary). A stored tensor matches one name only, so layers of an encoder are never used for a decoder's.

    Cost: O(T) when the names agree, else O(P T) for the P <= 49 pairs of prefixes.

    Parameters
    ----------
    reference, stored : shape by name
    """
    found = {name: name for name in reference if name in stored}
    replacements: list[tuple[str, str]] = []
    missing = [name for name in reference if name not in found]
    while missing and len(replacements) < _MAX_REPLACEMENTS:
        used = set(found.values())
        unused = [name for name in stored if name not in used]
        best = _best_replacement(missing, unused, reference, stored) if unused else None
        if best is None:
            break
        prefixes, matches = best
        replacements.append(prefixes)
        found.update(matches)
        missing = [name for name in missing if name not in matches]
    return NameMap(tuple(replacements), found)


def _best_replacement(
    missing: Sequence[str],
    unused: Sequence[str],
    reference: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[str, str], dict[str, str]] | None:
    """Return the pair of prefixes that finds most of the missing names, and what it finds."""
    unused_names = set(unused)
    best: tuple[tuple[str, str], dict[str, str]] | None = None
    for reference_prefix in _prefixes(missing):
        tails = [(name, name[len(reference_prefix) :]) for name in missing if name.startswith(reference_prefix)]
        for own_prefix in _prefixes(unused):
            if reference_prefix == own_prefix:
                continue
            matches = {name: own_prefix + tail for name, tail in tails if own_prefix + tail in unused_names}
            if not matches or (best is not None and len(matches) <= len(best[1])):
                continue
            num_equal_shapes = sum(reference[name] == stored[other] for name, other in matches.items())
            if num_equal_shapes * 10 >= len(matches) * 9:
                best = ((reference_prefix, own_prefix), matches)
    return best


def _prefixes(names: Sequence[str]) -> list[str]:
    """Return the empty prefix and the most frequent leading parts of names, without layer numbers."""
    counts: dict[str, int] = {}
    for name in names:
        end = -1
        for _ in range(_MAX_PREFIX_PARTS):
            end = name.find(".", end + 1)
            if end < 0:
                break
            prefix = name[: end + 1]
            if prefix[:-1].rpartition(".")[2].isdigit():
                break
            counts[prefix] = counts.get(prefix, 0) + 1
    frequent = sorted(counts, key=lambda prefix: (-counts[prefix], prefix))
    return ["", *frequent[: _MAX_PREFIXES - 1]]


def find_tied_weight(name: str, shape: tuple[int, ...], sources: Mapping[str, TensorSource]) -> str | None:
    """Return the stored name of a weight that `name` is tied to, with equal columns; None if there is none."""
    for group in _TIED:
        if group.search(name):
            for other, source in sources.items():
                if other != name and group.search(other) and source.shape[1:] == shape[1:]:
                    return other
    return None
