"""Which tensors belong to which module of a recipe with `modules`: encoder and decoder, text and vision.

A module has the names of mergekit: those of its architecture definitions (text_decoder, vision_tower), or a part of the
tensor names (encoder, model.decoder.layers). Tensors outside of every module, such as a shared embedding or the output
projection, belong to `default`, `shared` or the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...errors import RecipeError

# Parts of tensor names by mergekit's names of modules.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "text_decoder": ("language_model", "text_model"),
    "vision_tower": ("vision_tower", "vision_model", "visual", "vision_encoder"),
    "vision_model": ("vision_model", "vision_tower", "visual", "vision_encoder"),
    "multi_modal_projector": (
        "multi_modal_projector",
        "mm_projector",
        "visual.merger",
        "visual.merger_list",
        "visual.deepstack_merger_list",
    ),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}
_REST = ("default", "shared", "decoder", "text_decoder", "text_model", "language_model")


def assign_modules(names: Iterable[str], modules: Sequence[str]) -> dict[str, list[str]]:
    """Return the tensor names of each module, in the order given.

    The longest part of the name decides: visual.merger belongs to multi_modal_projector, the rest of visual to the
    vision tower.

    Raises
    ------
    RecipeError : a module has no tensor, or a tensor belongs to no module of the recipe
    """
    parts = {module: _PARTS.get(module, (module.strip("."),)) for module in modules}
    rest = modules[0] if len(modules) == 1 else next((module for module in _REST if module in modules), None)
    may_lack_others = rest is not None and (rest == "default" or rest not in {*_PARTS, *_REST})
    found: dict[str, list[str]] = {module: [] for module in modules}
    for name in names:
        owner = _owner(name, parts)
        if owner is None and not may_lack_others:
            unlisted = _owner(name, _PARTS)
            if unlisted is not None:
                raise RecipeError(
                    f"modules: {name} belongs to {unlisted}, which the recipe does not list; add it, or a module"
                    " `default` for all that no other module has"
                )
        owner = owner or rest
        if owner is None:
            raise RecipeError(f"modules: {name} belongs to none of {', '.join(modules)}; add a module `default`")
        found[owner].append(name)
    for module, owned in found.items():
        if not owned:
            raise RecipeError(f"modules.{module}: no tensor name contains {' or '.join(parts[module])}; remove it")
    return found


def _owner(name: str, parts: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return the module whose part of the name is the longest; of equally long ones the first in the name."""
    dotted = f".{name}."
    matches = [
        (-len(part), dotted.index(f".{part}."), module)
        for module, own in parts.items()
        for part in own
        if f".{part}." in dotted
    ]
    return min(matches)[2] if matches else None
