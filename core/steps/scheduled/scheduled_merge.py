"""A scheduled merge: scan the registry, decide whether to merge, merge, and move the pointer to the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

from ...cache.result import MergeResult
from ...errors import CheckpointError, DestinationError, EigenmergeError, one_line
from ...formats.redaction import redact
from ...output.places import place_of
from ...planning.plan import Plan
from ...publishing.expert_registry import RegistryScan, list_folders, scan_registry
from ...publishing.publication import (
    MergeInputs,
    Publication,
    SkippedExpert,
    UpdateOutcome,
    decide_update,
    folder_name,
    forget_folders,
    publish,
    read_publication,
)
from ...publishing.run_order import RUNS, return_number, take_number
from ...publishing.scheduled_recipe import template_digest
from ...recipe.recipe import Recipe
from ...storage.reachable import check_reachable
from ...storage.store import Store
from ..make_plan import make_plan
from .changes import changes_since
from .choose_experts import ChosenExperts, choose_experts
from .published_folder import file_versions, find_damage, hash_side_files, remove_empty_directory, remove_old_folders


@dataclass(frozen=True, slots=True)
class NightlyResult:
    """The result of a scheduled run.

    destination : what is published after the run; None if nothing is
    merged : the result of the merge; None if nothing had changed
    skipped : name of each registered expert that is not in the result, to the reason
    changes : differences of the result from the last published merge, one line each
    """

    outcome: UpdateOutcome
    reason: str
    destination: str | None
    merged: MergeResult | None
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    changes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return the result as JSON content."""
        return asdict(self)


class Merge(Protocol):
    """Computes one merge into a folder that a run before may have written to."""

    def __call__(self, recipe: Recipe, destination: str, plan: Plan) -> MergeResult: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is merged, and where it is published.

    template : a recipe without the registered experts
    registry : prefix with one folder per expert
    publish : prefix that receives a dated folder per merge, and the pointer `latest.json`
    keep : number of published merges that are kept; None keeps all
    strict : one expert that cannot be merged ends the run with an error, instead of being skipped
    """

    template: Mapping[str, Any]
    registry: str
    publish: str
    device: str = "cpu"
    max_memory: int | None = None
    keep: int | None = None
    strict: bool = False


def scheduled_merge(schedule: Schedule, merge: Merge, log: Callable[[str], None]) -> NightlyResult:
    """Merge the registered experts if anything changed that decides the result, and publish it.

    An expert that cannot be merged does not end the run: it is skipped, by name and with the reason. That
    holds for what the plan finds in headers and for what is found when weights are read; then the run is planned again
    without this expert.

    Parameters
    ----------
    merge : computes one merge
    log : receives one line for each decision

    Raises
    ------
    DestinationError : `publish` is inside the registry
    EigenmergeError : no expert can be merged, the recipe or the base is wrong, or `strict` and an expert is bad
    """
    options = schedule.template.get("storage_options")
    _check_places(schedule)
    check_reachable([schedule.registry, schedule.publish], options)
    registry, published = Store(schedule.registry, options), Store(schedule.publish, options)
    if not list_folders(registry):
        return NightlyResult("nothing new", f"{schedule.registry} has no expert", None, None)
    last = read_publication(published)
    number = take_number(published.with_probed_writes(f"{RUNS}probe-"), last.sequence if last else 0)
    try:
        return _merge_and_publish(schedule, merge, log, number, last)
    finally:
        current = read_publication(published)
        return_number(published, number, current.sequence if current else 0)


def _check_places(schedule: Schedule) -> None:
    """Check that what is published does not become a registered expert of the next run."""
    if place_of(schedule.registry).contains(place_of(schedule.publish)):
        raise DestinationError(
            f"{redact(schedule.publish)}: is inside the registry {redact(schedule.registry)}: its folders are experts;"
            " publish to another prefix"
        )


def _merge_and_publish(
    schedule: Schedule, merge: Merge, log: Callable[[str], None], number: int, last: Publication | None
) -> NightlyResult:
    options = schedule.template.get("storage_options")
    published = Store(schedule.publish, options)
    choice = _ExpertChoice(schedule, scan_registry(Store(schedule.registry, options), options), last, log)
    while True:
        chosen = choice.choose()
        inputs = choice.inputs(chosen)
        place = schedule.publish.rstrip("/")
        damage = find_damage(Store(f"{place}/{last.folder}", options), last) if last else ""
        decision = decide_update(inputs, last, damage)
        log(f"{decision.outcome}: {decision.reason}")
        if decision.outcome == "nothing new" and last is not None:
            destination = f"{place}/{last.folder}"
            result = NightlyResult(decision.outcome, decision.reason, destination, None, choice.reasons)
            _retain(published, options, last, schedule.keep)
            return result
        folder = folder_name(datetime.now(UTC), inputs, last.folder if last and damage else "")
        destination = f"{place}/{folder}"
        try:
            merged = merge(chosen.recipe, destination, chosen.plan)
        except EigenmergeError as error:
            remove_empty_directory(Store(destination, options))
            if not choice.skip(error):
                raise
            continue
        break
    changes = changes_since(f"{place}/{last.folder}", destination, options) if last else ()
    for line in changes:
        log(line)
    publication = Publication(
        folder=folder,
        inputs=inputs,
        sequence=number,
        skipped=choice.skipped,
        etags=file_versions(Store(destination, options)),
        history=(folder,),
    )
    later = publish(published, publication)
    if later is not None:
        reason = f"a later run has published {later.folder}; this merge is in {folder}"
        log(reason)
        return NightlyResult("superseded", reason, f"{place}/{later.folder}", merged, choice.reasons)
    result = NightlyResult(decision.outcome, decision.reason, destination, merged, choice.reasons, changes)
    _retain(published, options, read_publication(published), schedule.keep)
    return result


class _ExpertChoice:
    """The experts of one scheduled run: which are merged, and why the others are not."""

    def __init__(
        self, schedule: Schedule, scan: RegistryScan, last: Publication | None, log: Callable[[str], None]
    ) -> None:
        self._schedule, self._scan, self._log = schedule, scan, log
        self._version = version("eigenmerge")
        self.skipped: dict[str, SkippedExpert] = {}
        for name, reason in scan.skipped.items():
            self._skip(name, reason)
        # What failed with the same weights and the same code fails again, after hours of reading.
        known = last.skipped if last is not None and last.inputs.version == self._version else {}
        for name, fingerprint in scan.fingerprints.items():
            if name in known and known[name].fingerprint == fingerprint and known[name].found_in_weights:
                self._skip(name, known[name].reason, found_in_weights=True)

    @property
    def reasons(self) -> dict[str, str]:
        return {name: entry.reason for name, entry in sorted(self.skipped.items())}

    def choose(self) -> ChosenExperts:
        """Plan the experts that are left."""
        left = self._scan.without(self.skipped)
        if not left.experts:
            raise CheckpointError(f"no registered expert can be merged: {_list_reasons(self.reasons)}")
        schedule = self._schedule

        def plan(recipe: Recipe) -> Plan:
            return make_plan(recipe, max_memory=schedule.max_memory or recipe.max_memory, device=schedule.device)

        chosen = choose_experts(schedule.template, left, plan)
        for name, reason in chosen.skipped.items():
            self._skip(name, reason)
        return chosen

    def inputs(self, chosen: ChosenExperts) -> MergeInputs:
        """Return everything that decides the result."""
        return MergeInputs(
            recipe=template_digest(self._schedule.template, chosen.recipe),
            base=chosen.plan.base.fingerprint if chosen.plan.base else "",
            version=self._version,
            experts=chosen.scan.fingerprints,
            run_key=chosen.plan.run_key,
            side_files=hash_side_files(chosen.plan, chosen.recipe),
        )

    def skip(self, error: EigenmergeError) -> bool:
        """Skip the expert in whose files the cause of an error is; return False if it is in none of them."""
        name = self._scan.owner_of(error.source) if error.source else None
        if name is None or name in self.skipped:
            return False
        self._skip(name, one_line(error), found_in_weights=True)
        return True

    def _skip(self, name: str, reason: str, found_in_weights: bool = False) -> None:
        if self._schedule.strict:
            raise CheckpointError(f"expert {name!r} cannot be merged: {reason}; without --strict it is skipped")
        self._log(f"skipped {name}: {reason}")
        self.skipped[name] = SkippedExpert(reason, self._scan.fingerprints.get(name, ""), found_in_weights)


def _retain(
    published: Store, options: Mapping[str, Any] | None, publication: Publication | None, keep: int | None
) -> None:
    if keep is not None and publication is not None:
        forget_folders(published, remove_old_folders(published, options, publication, keep))


def _list_reasons(reasons: Mapping[str, str]) -> str:
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
    return shown + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
