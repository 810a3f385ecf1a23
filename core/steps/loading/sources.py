"""Where the weights of a model are that shall be loaded: a full model, or one with an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import CheckpointError
from ...storage.addresses import is_local
from ...storage.checkpoints.references import locate_model, parse_reference
from .load_check import NotCheckedError
from .stored_tensors import read_stored_tensors


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Absolute addresses of a full model, and of an adapter on it."""

    model: str
    adapter: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether nothing has to be downloaded."""
        return is_local(self.model) and (self.adapter is None or is_local(self.adapter))


def find_source(reference: str, options: Mapping[str, object] | None, base: ModelSource | None = None) -> ModelSource:
    """Return the place of a model from its reference.

    Parameters
    ----------
    reference : as in a recipe
    base : of an adapter that is named alone

    Raises
    ------
    NotCheckedError : it is not there, or an adapter without a base
    StoreError : the place cannot be read
    """
    reason = ""
    for parsed in parse_reference(reference):
        try:
            model = locate_model(parsed.model)
            is_adapter = read_stored_tensors(model, options).is_adapter
            if parsed.adapter is not None:
                return ModelSource(model, locate_model(parsed.adapter))
        except CheckpointError as error:
            reason = reason or str(error)
            continue
        if not is_adapter:
            return ModelSource(model)
        if base is None:
            raise NotCheckedError(f"{reference} is an adapter whose base is not known")
        return ModelSource(base.model, model)
    raise NotCheckedError(reason)
