"""Merge the documents of a recipe in turn, without Prefect, as `eigenmerge merge` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eigenmerge.core.cache.result import MergeResult
from eigenmerge.core.recipe.stages import Stage
from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.plan_stages import unfinished_stages


def merge_stages(stages: Sequence[Stage], **options: Any) -> MergeResult:
    """Return the last result; options as for `merge_run`."""
    return [merge_run(stage.recipe, stage.destination, **options) for stage in unfinished_stages(stages)][-1]
