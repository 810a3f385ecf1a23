"""Automations on the Prefect server that end runs whose machine died, so that they do not hold a place in a pool."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, StateType
    from prefect.events.schemas.automations import AutomationCore

#: Three heartbeats at Prefect's default of 180 seconds.
DEAD_AFTER_SECONDS = 600
#: Three heartbeats at the highest frequency that Prefect has.
LEAST_DEAD_AFTER_SECONDS = 90

RUNNING_NAME = "eigenmerge: end runs of dead machines"
PENDING_NAME = "eigenmerge: end runs that a dead worker did not start"

_HEARTBEAT = "prefect.flow-run.heartbeat"
# Sent for each run of this state when an automation has changed: it begins to wait.
_WATCH_RUNNING, _WATCH_PENDING = "eigenmerge.flow-run.watch-running", "eigenmerge.flow-run.watch-pending"
_PAGE = 200
_ENDED = ("Completed", "CompletedWithSkippedExperts", "Failed", "Cancelled", "Crashed", "AwaitingRetry")


def heartbeat_environment(dead_after: int) -> dict[str, str]:
    """Return the environment of a run that sends at least three heartbeats in `dead_after` seconds."""
    if dead_after >= DEAD_AFTER_SECONDS:
        return {}
    return {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(max(30, dead_after // 3))}


def apply_watch(client: SyncPrefectClient, dead_after: int = DEAD_AFTER_SECONDS) -> None:
    """Create or update the automations: a run that is silent for a while gets the state Crashed.

    Prefect counts pending and running flow runs against the limits of their pool and their deployment until the state
    changes, and a machine that lost its power changes nothing. A run that is alive after all, because the network was
    down, continues to its end; its result is in the store.

    A pending run of a process pool starts in seconds, so it is ended, too. In other pools it may wait for hours until
    the cluster has a free GPU.

    Automations that are right already are left as they are: a server that updates one forgets the runs for which it
    waits, and a run of a dead machine sends nothing that would begin the wait again. Where an automation has to change,
    all runs that are pending or running are reported to it.

    Parameters
    ----------
    dead_after : seconds without a heartbeat after which a run counts as dead
    """
    from prefect.client.schemas.objects import StateType

    tag = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.eigenmerge"}
    process_pool = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"}
    running = _apply(
        client,
        RUNNING_NAME,
        related=[tag],
        after=[_HEARTBEAT, _WATCH_RUNNING, *_events("Running")],
        expect=[_HEARTBEAT, *_events(*_ENDED)],
        message=f"no heartbeat for {dead_after} s; the same run again resumes",
        seconds=dead_after,
    )
    pending = _apply(
        client,
        PENDING_NAME,
        related=[tag, process_pool],
        after=[_WATCH_PENDING, *_events("Pending")],
        # A heartbeat: the run has started between the look at its state and the report.
        expect=[_HEARTBEAT, *_events("Running", "Scheduled", "AwaitingConcurrencySlot", "Cancelling", *_ENDED)],
        message=f"its worker did not start it for {dead_after} s; the same run again resumes",
        seconds=dead_after,
    )
    if running:
        _watch_runs(client, StateType.RUNNING, _WATCH_RUNNING)
    if pending:
        _watch_runs(client, StateType.PENDING, _WATCH_PENDING)


def _watch_runs(client: SyncPrefectClient, state: StateType, watch: str) -> None:
    """Send the event that begins the wait of a changed automation, for each run of a state."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        FlowRunFilterTags,
    )
    from prefect.events import Event, RelatedResource, Resource

    active = FlowRunFilter(
        tags=FlowRunFilterTags(all_=["eigenmerge"]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[state])),
    )
    types = {pool.name: pool.type for pool in client.read_work_pools()}
    events: list[Any] = []
    runs: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=active, limit=_PAGE, offset=len(runs)):
        runs += page
    for run in runs:
        related = [{"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.eigenmerge"}]
        if run.work_pool_name in types:
            pool = f"prefect.work-pool.{run.work_pool_name}"
            kind = {"prefect.resource.id": pool, "prefect.work-pool.type": types[run.work_pool_name]}
            related.append({"prefect.resource.role": "work-pool", **kind})
        resource = Resource({"prefect.resource.id": f"prefect.flow-run.{run.id}"})
        events.append(Event(event=watch, resource=resource, related=[RelatedResource(one) for one in related]))
    if events:
        body = [event.model_dump(mode="json") for event in events]
        client.request("POST", "/events", json=body).raise_for_status()


def _events(*states: str) -> list[str]:
    return [f"prefect.flow-run.{state}" for state in states]


def _apply(
    client: SyncPrefectClient,
    name: str,
    *,
    related: list[Mapping[str, str]],
    after: list[str],
    expect: list[str],
    message: str,
    seconds: int,
) -> bool:
    """Create or update one automation, and return whether an existing one was changed."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    trigger: Any = EventTrigger(
        posture=Posture.Proactive,
        match={"prefect.resource.id": "prefect.flow-run.*"},  # pyright: ignore[reportArgumentType]
        match_related=related,  # pyright: ignore[reportArgumentType]
        for_each={"prefect.resource.id"},
        after=set(after),
        expect=set(expect),
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    action: Any = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)
    wanted = AutomationCore(name=name, description="Created by `eigenmerge deploy`.", trigger=trigger, actions=[action])
    found = client.read_automations_by_name(name)
    kept = next((one for one in found if _is_equal(one, wanted)), found[0] if found else None)
    for extra in found:
        if kept is not None and extra.id != kept.id:
            client.delete_automation(extra.id)
    if kept is None:
        client.create_automation(wanted)
    elif not _is_equal(kept, wanted):
        client.update_automation(kept.id, wanted.model_copy(update={"enabled": kept.enabled}))
        return True
    return False


def _is_equal(found: AutomationCore, wanted: AutomationCore) -> bool:
    """Return whether an automation of the server is the wanted one. Its operator may have paused it."""
    names = set(type(wanted).model_fields) - {"owner_resource", "enabled"}
    return found.model_dump(include=names) == wanted.model_dump(include=names)
