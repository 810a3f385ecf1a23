"""Cancel the runs of a deployment that wait behind the current one: it does their work."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled


def cancel_queued_runs() -> int:
    """Cancel the waiting runs of this run's deployment, and return their number; 0 outside of a deployment.

    A nightly run looks at the registry after this, so it sees every expert that the waiting runs were started for. Five
    experts that are announced during a run cause one further run, not five. Runs scheduled for a later time stay.
    """
    own, deployment_id = flow_run.get_id(), deployment.get_id()
    if own is None or deployment_id is None:
        return 0
    waiting = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[UUID(str(deployment_id))]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=waiting, deployment_filter=of_deployment)
        queued = [run for run in found if str(run.id) != str(own) and _is_due(run)]
        for run in queued:
            client.set_flow_run_state(run.id, Cancelled(message=f"run {own} does its work"), force=True)
    return len(queued)


def _is_due(run: FlowRun) -> bool:
    # A run that waits for a slot is scheduled again and again a few seconds ahead.
    if run.state is not None and run.state.name == "AwaitingConcurrencySlot":
        return True
    return run.expected_start_time is not None and run.expected_start_time <= datetime.now(UTC)
