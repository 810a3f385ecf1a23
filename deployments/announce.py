"""Tell a Prefect server that an expert has appeared in a registry; the nightly deployment's automation listens."""

from __future__ import annotations

from prefect.events import emit_event

EXPERT_REGISTERED = "eigenmerge.expert.registered"


def announce_expert(registry: str, name: str) -> None:
    """Emit the event. Whoever uploads an expert calls this last: a training job, or a bucket's own notification.

    registry : exactly as the deployment was given it (`eigenmerge deploy --registry`): the automation compares the text
    """
    emit_event(
        event=EXPERT_REGISTERED,
        resource={
            "prefect.resource.id": f"eigenmerge.expert.{name}",
            "prefect.resource.name": name,
            "eigenmerge.registry": registry,
        },
    )
