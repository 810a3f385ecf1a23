"""The flow "nightly": scan the registry, decide whether to merge, merge, and move the pointer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from prefect.logging import get_run_logger

from ..core.cache.result import MergeResult
from ..core.choices import RunnerName
from ..core.publishing.expert_registry import scan_registry
from ..core.publishing.publication import (
    MergeInputs,
    Publication,
    UpdateOutcome,
    decide_update,
    folder_name,
    read_publication,
    write_publication,
)
from ..core.publishing.scheduled_recipe import complete_recipe, template_digest
from ..core.steps.read_recipe import read_recipe_mapping
from ..core.storage.checkpoints.list_model import list_model
from ..core.storage.store import Store
from .merge import merge
from .recorded_flow import recorded_flow


@dataclass(frozen=True, slots=True)
class NightlyResult:
    """The result of a scheduled run.

    destination : what is published after the run; None if nothing is
    merged : the result of the merge; None if nothing had changed
    """

    outcome: UpdateOutcome
    reason: str
    destination: str | None
    merged: MergeResult | None


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
) -> NightlyResult:
    """Merge the registered experts if anything changed since the last published merge.

    Parameters
    ----------
    recipe : path or URI of a recipe, or its text; the experts of `registry` are added to it
    registry : prefix with one folder per expert
    publish : prefix that receives a dated folder per merge and the pointer `latest.json`
    store, device, max_memory, workers, runner, runner_address : as for `merge`
    """
    log = get_run_logger()
    template = read_recipe_mapping(recipe)
    options = template.get("storage_options")
    scan = scan_registry(Store(registry, options), options)
    for name, reason in scan.skipped.items():
        log.warning("skipped %s: %s", name, reason)
    if not scan.experts:
        return NightlyResult("nothing new", "no expert is registered", None, None)

    completed = complete_recipe(template, scan)
    published = Store(publish, options)
    last = read_publication(published)
    inputs = MergeInputs(
        recipe=template_digest(template, completed),
        base=list_model(completed.base_model, options).fingerprint if completed.base_model else "",
        version=version("eigenmerge"),
        experts=scan.fingerprints,
    )
    decision = decide_update(inputs, last)
    log.info("%s: %s", decision.outcome, decision.reason)
    place = publish.rstrip("/")
    if decision.outcome == "nothing new":
        assert last is not None
        return NightlyResult(decision.outcome, decision.reason, f"{place}/{last.folder}", None)

    folder = folder_name(datetime.now(UTC), inputs)
    destination = f"{place}/{folder}"
    # overwrite: the folder is named after its inputs, so a killed run can only have left the same merge
    merged = merge(
        completed,
        destination,
        store=store,
        device=device,
        max_memory=max_memory,
        workers=workers,
        runner=runner,
        runner_address=runner_address,
        overwrite=True,
    )
    write_publication(published, Publication(folder, inputs))
    return NightlyResult(decision.outcome, decision.reason, destination, merged)
