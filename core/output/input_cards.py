"""What the model cards of base and experts state: license, languages, data sets, library; and their ids on the Hub.

How the id of a model is decided:

* `hf://owner/name`, also written owner/name: this id;
* a directory in the cache of huggingface_hub (models--owner--name/snapshots/...): this id;
* another directory: for the base the `_name_or_path` of its config.json, if that has the form owner/name, does not name
  a directory here, and the config of no expert names another one. transformers writes there what a model was loaded
  from. For a fine-tune that is the model before training, so an expert has no id by its config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..errors import CheckpointError, EigenmergeError
from ..formats.bounded_json import LONGEST_CONFIG_BYTES, parse_json_object
from ..formats.file_names import CONFIG_NAME, MODEL_CARD_NAME
from ..planning.plan import ModelSummary, Plan
from ..storage.addresses import is_local, split_address
from ..storage.checkpoints.hub import HUB_RETRY
from ..storage.checkpoints.references import locate_model, parse_reference
from ..storage.store import Store
from .card_rules import is_hub_id, read_metadata

_LONGEST_CARD_BYTES = 4 * 2**20
_HUB_ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)")
_HUB_CACHE = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/[^/]+")


@dataclass(frozen=True, slots=True)
class InputCard:
    """One input model.

    hub_id : owner/name; None where it is not known
    metadata : of its card; empty where it has none that can be read
    """

    name: str
    hub_id: str | None
    metadata: Mapping[str, object]

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a value of the metadata as a sorted tuple of texts; empty where it is absent."""
        value = self.metadata.get(key)
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list):
            return ()
        return tuple(sorted(str(one) for one in cast("list[object]", value)))


def read_input_cards(plan: Plan, options: Mapping[str, Any] | None) -> list[InputCard]:
    """Return the cards of the base, where there is one, and of the experts, in this order; an adapter has its own.

    Cost: one or two small reads for each model. A card that cannot be read counts as none.
    """
    models = [*((plan.base,) if plan.base else ()), *plan.experts]
    places = [place for model in models for place in _places(model)]
    cards = [InputCard(name, hub_id(uri), _read_metadata(uri, options)) for name, uri in places]
    if plan.base is None or cards[0].hub_id is not None:
        return cards
    named = [_named_source(uri, options) for _, uri in places]
    others = {name for name in named[1:] if name is not None and is_hub_id(name)}
    own = named[0]
    if own is not None and is_hub_id(own) and not Path(own).exists() and others <= {own}:
        cards[0] = replace(cards[0], hub_id=own)
    return cards


def hub_id(uri: str) -> str | None:
    """Return owner/name of an address on the Hub or in its cache; None for others."""
    address = _HUB_ADDRESS.match(uri)
    if address is not None:
        return address[1]
    cached = _HUB_CACHE.search(uri) if is_local(uri) else None
    found = f"{cached[1]}/{cached[2]}" if cached is not None else None
    return found if found is not None and is_hub_id(found) else None


def _places(model: ModelSummary) -> list[tuple[str, str]]:
    """Return name and address of a model, and of the adapter on it."""
    found = [(model.name, model.uri)]
    if model.kind == "full+adapter":
        try:
            adapter = parse_reference(model.name)[-1].adapter
            found += [(adapter, locate_model(adapter))] if adapter is not None else []
        except CheckpointError:  # it has been moved since the plan
            found.append((model.name, model.name))
    return found


def _read_metadata(uri: str, options: Mapping[str, Any] | None) -> Mapping[str, object]:
    try:
        text = _read(uri, MODEL_CARD_NAME, options, _LONGEST_CARD_BYTES).decode(errors="replace")
        return read_metadata(text) or {}
    except EigenmergeError:
        return {}


def _named_source(uri: str, options: Mapping[str, Any] | None) -> str | None:
    """Return `_name_or_path` of a model's config.json."""
    try:
        data = _read(uri, CONFIG_NAME, options, LONGEST_CONFIG_BYTES)
        found = parse_json_object(data, CONFIG_NAME, LONGEST_CONFIG_BYTES, finite=False).get("_name_or_path")
    except EigenmergeError:
        return None
    return found if isinstance(found, str) else None


def _read(uri: str, name: str, options: Mapping[str, Any] | None, limit: int) -> bytes:
    folder = split_address(uri)[0] if uri.endswith((".safetensors", ".json")) else uri
    return Store(folder, options, retry=HUB_RETRY).read(name, limit)
