"""Prefixes of tensor names: which of them only wrap a model, and which give a tensor another role.

A wrapper contains a whole model: `model.`, `roberta.`, `0.auto_model.`, `language_model.`. To add or remove one does
not change the role of a tensor. To exchange one word for another does: encoder and decoder, text and vision tower,
lm_head and classifier can have equal tensors below them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# Modules that a tool puts around any module, also inside a model: torch.compile, FSDP, activation checkpoints.
_TRANSPARENT = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# Attributes that hold a whole model in classes of Transformers, PEFT, sentence-transformers, DDP and Lightning.
_HOLDERS = frozenset({"model", "module", "base_model", "auto_model", "pretrained_model", "state_dict"})


def remove_transparent(name: str) -> str:
    """Return a name without the modules that a tool put around others, wherever they are."""
    if "_orig_mod" not in name and "wrapped_module" not in name and "_forward_module" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def changed_words(prefix: str, other: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of each prefix that the other does not have, in any order, without holders and numbers.

    `model.language_model.` and `language_model.model.` have none; of `bert.` and `0.auto_model.`, the first has one.
    """
    first, second = (Counter(filter(None, text.split("."))) for text in (prefix, other))
    return _own_words(first - second), _own_words(second - first)


def _own_words(words: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in _HOLDERS and not word.isdigit())


def has_layers(name: str) -> bool:
    """Return whether a number stands inside a name, as that of a layer does."""
    return any(part.isdigit() for part in name.split(".")[1:])


def prefix_pairs(reference: Iterable[str], stored: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of prefixes whose exchange makes names of one side equal to names of the other.

    The prefixes of a pair end differently, and have no number except that of a position in front
    (`0.auto_model.`, `model.0.`). The rest of a name is equal, layer numbers aside.

    Cost: O(names) and O(H^2) for the H distinct modules that contain the same numbered modules.
    """
    by_rest: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for rest, head in _splits(stored):
        by_rest.setdefault(rest, set()).add(head)
    pairs: Counter[tuple[str, str]] = Counter()
    for rest, head in _splits(reference):
        for other in by_rest.get(rest, ()):
            common = _common_end(head, other)
            if not rest and common < min(2, len(head), len(other)):
                continue  # two names that only both end in `weight`
            if head != other:
                pairs[_prefix(head, common), _prefix(other, common)] += 1
    return [pair for pair, _ in pairs.most_common()]


def _splits(names: Iterable[str]) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return (rest, head) of names: the head ends before the first number, the rest has numbers replaced by 0."""
    found: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    for name in names:
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        cuts = [numbers[0] if numbers else len(parts)]
        if numbers and all(part in _HOLDERS for part in parts[: numbers[0]]):
            cuts.append(numbers[1] if len(numbers) > 1 else len(parts))
        for cut in cuts:
            rest = tuple("0" if part.isdigit() else part for part in parts[cut:])
            found.add((rest, tuple(parts[:cut])))
    return found


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def _prefix(head: Sequence[str], common: int) -> str:
    return "".join(f"{part}." for part in head[: len(head) - common])
