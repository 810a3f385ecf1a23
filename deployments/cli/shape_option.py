"""`eigenmerge plan --shape`: plan a merge of models that are not at hand, from their shape alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.listing import ModelListing
    from ...core.planning.model_shapes import ModelShape
    from ...core.recipe.stages import Stage

DEFAULT_RANK = 16
_LONGEST_CONFIG_BYTES = 16 * 2**20
ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="NAME|FILE",
        help="Plan without the models: each has this shape. llama-8b, llama-70b, qwen3-30b-a3b, deepseek-v3, ..., or a"
        " config.json.",
    ),
]
ExpertsOption = Annotated[
    int | None,
    typer.Option("--experts", min=1, metavar="N", help="With --shape, instead of RECIPE: number of experts."),
]
MethodOption = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="With --shape, instead of RECIPE: the method.")
]
RankOption = Annotated[
    int | None,
    typer.Option("--rank", min=1, metavar="R", help="With --shape: adapters of this rank, instead of full experts."),
]


def shaped_stages(
    recipe: str | None, shape: str, experts: int | None, method: str | None, rank: int | None
) -> tuple[tuple[Stage, ...], dict[str, ModelListing]]:
    """Return the stages to plan, and a listing of the given shape for each of their models.

    Parameters
    ----------
    recipe : whose models need not exist; None: `experts` models merged by `method`

    Raises
    ------
    RecipeError : the shape is unknown, or both a recipe and a number of experts or a method are given
    """
    from ...core.planning.model_shapes import shape_listing
    from ...core.steps.read_recipe import read_stages

    found = _read_shape(shape)
    if recipe is not None and (experts is not None or method is not None):
        option = "--experts" if experts is not None else "--method"
        raise RecipeError(f"{option} is for a plan without a recipe; remove it, or RECIPE")
    stages = read_stages(recipe if recipe is not None else _recipe_text(experts or 8, method or "swudi_a", rank), "OUT")
    # Without tokenizers, every model has the vocabulary of the shape.
    no_tokenizers = {"tokenizer_source": None, "tokenizer": None, "chat_template": None}
    stages = tuple(replace(stage, recipe=stage.recipe.model_copy(update=no_tokenizers)) for stage in stages)
    results = {stage.destination for stage in stages}
    references = _references(stages)
    return stages, {
        reference: shape_listing(found, reference, rank or DEFAULT_RANK)
        for reference in references
        if reference.partition("+")[0] not in results
    }


def _read_shape(name: str) -> ModelShape:
    from ...core.formats.bounded_json import parse_json_object
    from ...core.planning.model_shapes import NAMED, ModelShape, find_shape

    path = Path(name)
    if name in NAMED or not (path.suffix == ".json" or path.exists()):
        return find_shape(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"--shape {name}: cannot be read: {error.strerror}") from None
    return ModelShape(name, parse_json_object(content, name, _LONGEST_CONFIG_BYTES))


def _recipe_text(experts: int, method: str, rank: int | None) -> str:
    import json

    models = [f"base+adapter-{number}" if rank else f"expert-{number}" for number in range(1, experts + 1)]
    return f"merge_method: {json.dumps(method)}\nbase_model: base\nmodels: {json.dumps(models)}\n"


def _references(stages: Sequence[Stage]) -> list[str]:
    found = [name for stage in stages for name in (*stage.recipe.base_references, *stage.recipe.expert_references)]
    return list(dict.fromkeys(found))
