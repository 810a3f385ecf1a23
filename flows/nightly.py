"""The flow "nightly": scan the registry, decide whether to merge, merge, and move the pointer."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import State
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed

from ..core.cache.result import MergeResult
from ..core.choices import RunnerName
from ..core.escaping import markdown_text, printable
from ..core.planning.plan import Plan
from ..core.recipe.recipe import Recipe
from ..core.steps.read_recipe import read_recipe_mapping
from ..core.steps.scheduled.prepare_scheduled import prepare_scheduled
from ..core.steps.scheduled.scheduled_merge import NightlyResult, Schedule, scheduled_merge
from .merge_with_reports import merge_with_reports
from .queued_runs import cancel_queued_runs
from .recorded_flow import recorded_flow
from .run_context import RunContext
from .server_health import ServerHealth

#: Name of the final state of a run that left experts out, for automations.
WITH_SKIPPED = "CompletedWithSkippedExperts"


@recorded_flow(name="nightly", flow_run_name="nightly merge of {registry}")
def nightly(
    recipe: str,
    registry: str,
    publish: str,
    *,
    store: str | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    workers: int | None = None,
    runner: RunnerName | None = None,
    runner_address: str | None = None,
    keep: int | None = None,
    strict: bool = False,
) -> NightlyResult | State[NightlyResult]:
    """Merge the registered experts if anything changed since the last published merge.

    A run that leaves out an expert ends in the state `CompletedWithSkippedExperts`, whose message names them. Calling
    the flow returns a NightlyResult in any case.

    Parameters
    ----------
    recipe : path or URI of a recipe, or its text; the experts of `registry` are added to it
    registry : prefix with one folder per expert
    publish : prefix that receives a dated folder per merge and the pointer `latest.json`
    store, device, max_memory, workers, runner, runner_address : as for `merge`
    keep : number of published merges to keep; None keeps all
    strict : fail where an expert cannot be merged, instead of leaving it out
    """
    server = ServerHealth()
    log = get_run_logger()
    server.report(cancel_queued_runs)

    def merge_one(recipe: Recipe, destination: str, plan: Plan) -> MergeResult:
        prepared, parameters, chosen_runner = prepare_scheduled(
            recipe,
            destination,
            plan,
            store=store,
            device=device,
            max_memory=max_memory,
            workers=workers,
            runner=runner,
            runner_address=runner_address,
        )
        return merge_with_reports(prepared, RunContext(server=server), parameters, chosen_runner)

    schedule = Schedule(
        read_recipe_mapping(recipe), registry, publish, device=device, max_memory=max_memory, keep=keep, strict=strict
    )
    result = scheduled_merge(schedule, merge_one, lambda line: log.info("%s", printable(line)))
    if result.changes:
        text = "\n".join(f"* {markdown_text(line)}" for line in result.changes)
        server.report(create_markdown_artifact, text, "changes", "Differences from the last published merge")
    if not result.skipped:
        return result
    rows = skipped_rows(result.skipped)
    server.report(create_table_artifact, rows, "skipped-experts", "Registered experts that are not in the result")
    message = "; ".join(f"skipped {name}: {reason}" for name, reason in result.skipped.items())
    return Completed(name=WITH_SKIPPED, message=printable(message[:2000]), data=result)


def skipped_rows(skipped: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the rows of the artifact that lists the experts which are left out."""
    return [{"expert": markdown_text(name), "reason": markdown_text(reason)} for name, reason in skipped.items()]
