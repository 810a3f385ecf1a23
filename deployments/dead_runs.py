"""An automation on the Prefect server that ends runs whose machine died, so that they do not hold a place in a pool."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

NAME = "eigenmerge: end runs of dead machines"
#: Three heartbeats at Prefect's default of 180 seconds.
SILENT_SECONDS = 600.0

_HEARTBEAT = "prefect.flow-run.heartbeat"


def apply_watch(client: SyncPrefectClient, silent_seconds: float = SILENT_SECONDS) -> None:
    """Create or update the automation: a run that has sent no heartbeat for a while gets the state Crashed.

    Prefect counts a running flow run against the limits of its pool and its deployment until its state changes, and a
    machine that lost its power changes nothing. A run that is alive after all, because the network was down, continues
    to its end; its result is in the store.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry")}
    trigger: Any = EventTrigger(
        posture=Posture.Proactive,
        match={"prefect.resource.id": "prefect.flow-run.*"},  # pyright: ignore[reportArgumentType]
        match_related={  # pyright: ignore[reportArgumentType]
            "prefect.resource.role": "tag",
            "prefect.resource.id": "prefect.tag.eigenmerge",
        },
        for_each={"prefect.resource.id"},
        after={_HEARTBEAT, "prefect.flow-run.Running"},
        expect={_HEARTBEAT, "prefect.flow-run.CompletedWithSkippedExperts", *ended},
        threshold=1,
        within=timedelta(seconds=silent_seconds),
    )
    action: Any = ChangeFlowRunState(
        name="Crashed",
        state=StateType.CRASHED,
        message=f"no heartbeat for {silent_seconds:.0f} s; the same run again resumes",
        force=False,
    )
    wanted = AutomationCore(
        name=NAME,
        description="Created by `eigenmerge deploy`.",
        trigger=trigger,
        actions=[action],
    )
    found = client.read_automations_by_name(NAME)
    if not found:
        client.create_automation(wanted)
        return
    client.update_automation(found[0].id, wanted)
    for extra in found[1:]:
        client.delete_automation(extra.id)
