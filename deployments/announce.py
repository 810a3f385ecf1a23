"""Emit the Prefect event that an expert was added to a registry; it starts the nightly deployment."""

from __future__ import annotations

import httpx
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.settings import PREFECT_API_URL, temporary_settings

from ..core.errors import DeployError, suggestion
from ..core.publishing.expert_registry import list_folders
from ..core.storage.reachable import check_reachable
from ..core.storage.store import Store

EXPERT_REGISTERED = "eigenmerge.expert.registered"


def check_registered(registry: str, name: str) -> None:
    """Check that the registry has a folder of this name.

    Raises
    ------
    DeployError : no such folder
    StoreError : the registry cannot be listed
    """
    check_reachable([registry])
    known = list_folders(Store(registry))
    if name not in known:
        raise DeployError(
            f"{registry} has no expert {name!r}{suggestion(name, known)}; upload it before it is announced"
        )


def announce_expert(registry: str, name: str, *, api_url: str) -> None:
    """Send the event to the Prefect server, after the expert has been uploaded completely.

    `prefect.events.emit_event` is not used, because it sends in the background and does not report a failure.

    Parameters
    ----------
    registry : exactly the text given to `eigenmerge deploy --registry`, because the automation compares the two texts
    name : of the expert's folder in the registry

    Raises
    ------
    DeployError : the server does not answer or does not accept the event
    """
    resource = {
        "prefect.resource.id": f"eigenmerge.expert.{name}",
        "prefect.resource.name": name,
        "eigenmerge.registry": registry,
    }
    event = Event(event=EXPERT_REGISTERED, resource=Resource(resource))
    with temporary_settings({PREFECT_API_URL: api_url}):
        try:
            with get_client(sync_client=True) as client:
                client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
        except httpx.HTTPError as error:
            raise DeployError(
                f"event not sent to the Prefect server at {api_url} ({error}); check --api-url or PREFECT_API_URL"
            ) from error
