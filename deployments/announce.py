"""Emit the Prefect event that an expert was added to a registry; it starts the nightly deployment."""

from __future__ import annotations

from prefect.events import emit_event

EXPERT_REGISTERED = "eigenmerge.expert.registered"


def announce_expert(registry: str, name: str) -> None:
    """Emit the event, after the expert has been uploaded completely.

    Parameters
    ----------
    registry : exactly the text given to `eigenmerge deploy --registry`, because the automation compares the two texts
    name : of the expert's folder in the registry
    """
    emit_event(
        event=EXPERT_REGISTERED,
        resource={
            "prefect.resource.id": f"eigenmerge.expert.{name}",
            "prefect.resource.name": name,
            "eigenmerge.registry": registry,
        },
    )
