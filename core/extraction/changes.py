"""What of a fine-tune an adapter holds as factors, and what as whole modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from ..errors import CheckpointError, ShapeError
from ..listing import ModelListing, TensorSource
from ..planning.inputs.checkpoint import Checkpoint, MatchCache, reference_tensors
from ..planning.inputs.layouts.layout import Layout
from ..planning.names import natural_key

Form = Literal["factors", "whole"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor of the base and of the fine-tune."""

    name: str
    base: TensorSource
    tuned: TensorSource

    @property
    def module(self) -> str:
        """The name of the module that holds the tensor."""
        return self.name.rpartition(".")[0]


def base_layout(base: ModelListing) -> Layout:
    """Return how the base stores its matrices."""
    shapes = {name: source.shape for name, source in reference_tensors(base, "is the base").items()}
    return Layout(shapes, base.config)


def pair_tensors(base: ModelListing, tuned: ModelListing, layout: Layout) -> list[Pair]:
    """Return every tensor of the base with that of the fine-tune, layer by layer.

    Raises
    ------
    CheckpointError : one of the two has tensors that the other lacks, or is an adapter
    ShapeError : a tensor has another shape
    """
    stored = reference_tensors(base, "is the base")
    if tuned.kind != "full":
        raise CheckpointError(f"{tuned.name}: includes an adapter; expected a full fine-tune")
    checkpoint = Checkpoint(tuned, layout, None, MatchCache())
    pairs: list[Pair] = []
    for name in sorted(stored, key=natural_key):
        found = checkpoint.contribution(name, stored[name])
        if found is None or found.full is None:
            raise CheckpointError(f"{name}: {base.name} has it, {tuned.name} does not; give a fine-tune of this base")
        if found.full.shape != stored[name].shape:
            raise ShapeError(
                f"{name}: {tuned.name} has shape {list(found.full.shape)}, {base.name} has {list(stored[name].shape)};"
                " an adapter cannot change shapes"
            )
        pairs.append(Pair(name, stored[name], found.full))
    extra = checkpoint.extra_names()
    if extra:
        raise CheckpointError(
            f"{extra[0]}: {tuned.name} has it ({len(extra)} such tensors), {base.name} does not;"
            " an adapter cannot add it"
        )
    return pairs


def choose_forms(pairs: Sequence[Pair], changed: Collection[str], layout: Layout) -> dict[str, Form]:
    """Return how each changed tensor is stored, by name; a module that is stored whole has all its tensors there.

    Matrices are factors. Norms, embeddings, and modules with a changed bias are whole modules (modules_to_save), which
    are exact.

    Raises
    ------
    CheckpointError : a changed tensor that a PEFT adapter cannot hold
    """
    forms: dict[str, Form] = {}
    by_module: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_module.setdefault(pair.module, []).append(pair)
    tied = bool((layout.config or {}).get("tie_word_embeddings"))
    for own in by_module.values():
        touched = [pair for pair in own if pair.name in changed]
        if not touched:
            continue
        kinds = {pair.name: layout.kind(pair.name, pair.base.shape, pair.base.dtype) for pair in touched}
        for pair in touched:
            kind, last = kinds[pair.name], pair.name.rpartition(".")[2]
            if kind in ("expert_stack", "buffer", "conv") or last not in ("weight", "bias"):
                raise _not_held(pair.name, f"is a changed {kind.replace('_', ' ')} of shape {list(pair.base.shape)}")
            if tied and kind in ("embedding", "lm_head"):
                raise _not_held(
                    pair.name, "is changed, and PEFT would not change the output projection that is tied to it"
                )
        if len(touched) == 1 and kinds[touched[0].name] in ("matrix", "lm_head") and touched[0].name.endswith("weight"):
            forms[touched[0].name] = "factors"
        else:
            forms |= {pair.name: "whole" for pair in own}
    return forms


def _not_held(name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{name}: {why}; an adapter cannot hold it. Pass --leave-out {name!r} to leave it unchanged")


def is_left_out(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a tensor's name matches one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
