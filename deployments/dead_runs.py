"""Automations on the Prefect server that end runs whose machine died, so that they do not hold a place in a pool."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

#: Three heartbeats at Prefect's default of 180 seconds.
DEAD_AFTER_SECONDS = 600
#: Three heartbeats at the highest frequency that Prefect has.
LEAST_DEAD_AFTER_SECONDS = 90

RUNNING_NAME = "eigenmerge: end runs of dead machines"
PENDING_NAME = "eigenmerge: end runs that a dead worker did not start"

_HEARTBEAT = "prefect.flow-run.heartbeat"
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

    Parameters
    ----------
    dead_after : seconds without a heartbeat after which a run counts as dead
    """
    tag = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.eigenmerge"}
    process_pool = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"}
    _apply(
        client,
        RUNNING_NAME,
        related=[tag],
        after=[_HEARTBEAT, *_events("Running")],
        expect=[_HEARTBEAT, *_events(*_ENDED)],
        message=f"no heartbeat for {dead_after} s; the same run again resumes",
        seconds=dead_after,
    )
    _apply(
        client,
        PENDING_NAME,
        related=[tag, process_pool],
        after=_events("Pending"),
        expect=_events("Running", "Scheduled", "AwaitingConcurrencySlot", "Cancelling", *_ENDED),
        message=f"its worker did not start it for {dead_after} s; the same run again resumes",
        seconds=dead_after,
    )


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
) -> None:
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
    if not found:
        client.create_automation(wanted)
        return
    client.update_automation(found[0].id, wanted)
    for extra in found[1:]:
        client.delete_automation(extra.id)
