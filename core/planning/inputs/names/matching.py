"""Match tensor names across checkpoints whose models are wrapped differently.

The reference (the base, or the first expert) gives the names of the output. Every other checkpoint is searched for
these names, first unchanged, then with other prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ....errors import CheckpointError
from .wrappers import changed_words, has_layers, prefix_pairs, remove_transparent

Shapes = Mapping[str, tuple[int, ...]]

_MAX_REPLACEMENTS = 8  # a vision-language model may differ in the prefixes of towers, projector, language model, head
_MAX_PAIRS = 64


@dataclass(frozen=True, slots=True)
class NameMap:
    """The names of the reference's tensors in a checkpoint.

    replacements : (reference's prefix, checkpoint's prefix), tried in order after the unchanged name
    stored : the checkpoint's name by the reference's name
    originals : stored name by name without transparent modules, where they differ
    """

    replacements: tuple[tuple[str, str], ...]
    stored: Mapping[str, str]
    originals: Mapping[str, str] = field(default_factory=dict[str, str])

    def find(self, name: str, names: Mapping[str, object]) -> str | None:
        """Return the checkpoint's name for a reference name, also in a layer that the reference does not have.

        Parameters
        ----------
        names : the checkpoint's names, as keys
        """
        known = self.stored.get(name)
        if known is not None:
            return known
        name = remove_transparent(name)
        spellings = [name]
        for reference_prefix, own_prefix in self.replacements:
            if name.startswith(reference_prefix):
                spellings.append(own_prefix + name[len(reference_prefix) :])
        for spelling in spellings:
            original = self.originals.get(spelling, spelling)
            if original in names:
                return original
        return None

    def describe(self) -> str:
        """Return the replacements in words, for a warning."""
        parts = [f"{own or '(none)'!r} for {reference or '(none)'!r}" for reference, own in self.replacements]
        return "names matched with prefix " + ", ".join(parts)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A pair of prefixes and the names that it matches.

    num_words : words that it adds or removes, other than the usual names of attributes that hold a model
    """

    prefixes: tuple[str, str]
    matches: Mapping[str, str]
    num_equal_shapes: int
    num_words: int

    @property
    def rank(self) -> tuple[int, int, int]:
        return len(self.matches), self.num_equal_shapes, -self.num_words

    def contradicts(self, other: _Candidate) -> bool:
        """Return whether the two use one stored tensor for two names, or two for one name."""
        pairs = set(self.matches.items()) ^ set(other.matches.items())
        return len({name for name, _ in pairs}) < len(pairs) or len({stored for _, stored in pairs}) < len(pairs)


def match_names(reference: Shapes, stored: Shapes) -> NameMap:
    """Find each reference name in a checkpoint; replace prefixes where the unchanged names do not occur.

    A prefix is replaced by another only if they are wrappers: words are added or removed, never exchanged, and the
    module that they name contains numbered layers. At least nine in ten shapes agree, apart from the size of the
    vocabulary. A stored tensor matches one name only.

    Cost: O(T) when the names agree, else O(P T) for P <= 64 pairs of prefixes.

    Parameters
    ----------
    reference, stored : shape by name

    Raises
    ------
    CheckpointError : two prefixes fit equally well; the message does not name the model
    """
    own, originals = _without_transparent(stored)
    wanted, names = _without_transparent(reference)
    found = {name: name for name in wanted if name in own}
    replacements: list[tuple[str, str]] = []
    missing = {name: shape for name, shape in wanted.items() if name not in found}
    while missing and len(replacements) < _MAX_REPLACEMENTS:
        used = set(found.values())
        unused = {name: shape for name, shape in own.items() if name not in used}
        best = _best_candidate(missing, unused, found) if unused else None
        if best is None:
            break
        replacements.append(best.prefixes)
        found.update(best.matches)
        missing = {name: shape for name, shape in missing.items() if name not in best.matches}
    stored_names = {names.get(name, name): originals.get(other, other) for name, other in found.items()}
    return NameMap(tuple(replacements), stored_names, originals)


def _without_transparent(shapes: Shapes) -> tuple[Shapes, Mapping[str, str]]:
    """Return the shapes by name without transparent modules, and the stored names where they differ."""
    originals: dict[str, str] = {}
    cleaned: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        clean = remove_transparent(name)
        if clean != name and clean in shapes:
            clean = name  # both are stored; which one is meant is unknown
        if clean != name:
            originals[clean] = name
        cleaned[clean] = shape
    return cleaned, originals


def _best_candidate(missing: Shapes, unused: Shapes, found: Mapping[str, str]) -> _Candidate | None:
    """Return the pair of prefixes that finds most of the missing names."""
    candidates: list[_Candidate] = []
    for prefixes in prefix_pairs(missing, unused)[:_MAX_PAIRS]:
        candidate = _try_prefixes(prefixes, missing, unused, found)
        if candidate is not None:
            candidates.append(candidate)
    if not candidates:
        return None
    best = max(candidates, key=lambda candidate: candidate.rank)
    for other in candidates:
        if other is not best and other.rank == best.rank and best.contradicts(other):
            name, stored = next(iter(best.matches.items()))
            shown = " and ".join(
                f"{item[1] or '(none)'!r} for {item[0] or '(none)'!r}" for item in (best.prefixes, other.prefixes)
            )
            raise CheckpointError(
                f"names fit with two prefixes equally well, {shown} (such as {stored} for {name}); rename its tensors"
                " as in the base"
            )
    return best


def _try_prefixes(
    prefixes: tuple[str, str], missing: Shapes, unused: Shapes, found: Mapping[str, str]
) -> _Candidate | None:
    """Return what a pair of prefixes matches; None if it is no wrapper or the shapes do not agree."""
    reference_prefix, own_prefix = prefixes
    removed, added = changed_words(reference_prefix, own_prefix)
    if removed and added:
        return None
    length = len(reference_prefix)
    matches = {
        name: own_prefix + name[length:]
        for name in missing
        if name.startswith(reference_prefix) and own_prefix + name[length:] in unused
    }
    if not matches:
        return None
    num_layers = sum(map(has_layers, matches))
    if (removed or added) and not num_layers:
        # A module without layers, such as a head, is inside a wrapper if the wrapper contains matched layers.
        sides = [name for name in found if name.startswith(reference_prefix)] if removed else []
        sides += [name for name in found.values() if name.startswith(own_prefix)] if added else []
        if not any(map(has_layers, sides)):
            return None
    under_reference = sum(name.startswith(reference_prefix) and has_layers(name) for name in missing)
    under_own = sum(name.startswith(own_prefix) and has_layers(name) for name in unused)
    if (removed or added) and num_layers * 2 < min(under_reference, under_own):
        return None
    agreeing = sum(_shapes_agree(name, missing[name], unused[other]) for name, other in matches.items())
    if agreeing * 10 < len(matches) * 9:
        return None
    num_equal = sum(missing[name] == unused[other] for name, other in matches.items())
    return _Candidate(prefixes, matches, num_equal, len(removed) + len(added))


def _shapes_agree(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether shapes are equal, or differ in the rows of a tensor outside of layers: the vocabulary."""
    return one == other or (not has_layers(name) and len(one) == len(other) > 0 and one[1:] == other[1:])
