"""Check that a merge does not write into its inputs, and that its destination and its store are separate places."""

from __future__ import annotations

from ..errors import DestinationError
from ..formats.redaction import redact
from ..planning.plan import Plan
from ..storage.store import Store
from .places import Place, place_of


def check_inputs_are_elsewhere(plan: Plan, uri: str, target: Store) -> None:
    """Check that no input of the plan is at the destination, and that the destination is inside of no input.

    Raises
    ------
    DestinationError : names the model and both addresses
    """
    place = place_of(target.root_uri)
    for name, source, found in _models(plan):
        if place.contains(found) or found.contains(place):
            raise DestinationError(
                f"{uri}: is the location of the input model {name!r}{_spelled(source, target)}; choose another"
                " destination"
            )
    for source in plan.input_uris:  # a file may be a link to another folder
        if place.contains(place_of(source)):
            raise DestinationError(
                f"{uri}: holds the file {redact(source)}, which this merge reads; choose another destination"
            )


def check_store_is_elsewhere(plan: Plan, uri: str, target: Store, store: Store) -> None:
    """Check that destination and store are not inside each other, and that the store is inside of no input.

    Raises
    ------
    DestinationError : names both addresses
    """
    shown = store.display("")
    destination, kept = place_of(target.root_uri), place_of(store.root_uri)
    if kept.contains(destination):
        raise DestinationError(
            f"{uri}: is inside the store {shown}, where `eigenmerge cache gc` removes what no run uses; choose another"
            " destination or another store"
        )
    if destination.contains(kept):
        raise DestinationError(
            f"{uri}: contains the store {shown}; choose another destination or another store (--store)"
        )
    for name, _, found in _models(plan):
        if found.contains(kept):
            raise DestinationError(
                f"the store {shown} is inside the input model {name!r}; choose another store (--store)"
            )


def _models(plan: Plan) -> list[tuple[str, str, Place]]:
    """Return name, address and place of the models, and of folders that have no name of their own in the plan."""
    models = ((plan.base,) if plan.base else ()) + plan.experts
    named = {model.uri: model.name for model in models}
    return [(named.get(uri, redact(uri)), uri, place_of(uri)) for uri in dict.fromkeys((*named, *plan.input_folders))]


def _spelled(source: str, target: Store) -> str:
    """Return the model's address where it is not the one that the user gave as destination."""
    return "" if source.rstrip("/") == target.root_uri else f" ({redact(source)})"
