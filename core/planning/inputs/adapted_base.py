"""A base model with a LoRA adapter (`base_model: model+adapter`): the adapter is added when the base is read."""

from __future__ import annotations

from dataclasses import replace

from ...errors import CheckpointError, ShapeError
from ...listing import ModelListing, StackedLora, TensorSource
from ...views import adapt
from .checkpoint import Checkpoint, MatchCache, reference_tensors
from .layouts.layout import Layout


def merge_adapter(listing: ModelListing, warnings: list[str]) -> ModelListing:
    """Return the listing of a base with the adapter's factors at the tensors that they change.

    Parameters
    ----------
    listing : any model; one without an adapter is returned unchanged
    warnings : those about the adapter are appended

    Raises
    ------
    CheckpointError, ShapeError : the adapter does not fit its model
    """
    if listing.kind != "full+adapter":
        return listing
    stored = reference_tensors(listing, "is set as base_model")
    layout = Layout({name: source.shape for name, source in stored.items()}, listing.config)
    checkpoint = Checkpoint(listing, layout, None, MatchCache())
    warnings += checkpoint.warnings
    tensors: dict[str, TensorSource] = {}
    for name, source in stored.items():
        found = checkpoint.contribution(name, source)
        assert found is not None and found.full is not None, f"{name} is in its own model"
        if found.full.shape != source.shape:
            raise ShapeError(
                f"{name}: the adapter of {listing.name} stores it as {list(found.full.shape)}, its model as"
                f" {list(source.shape)}; merge the adapter into the model first"
            )
        if isinstance(found.lora, StackedLora):
            raise CheckpointError(
                f"{name}: the adapter of {listing.name} changes parts of a stack; merge it into the model first"
            )
        tensors[name] = adapt(found.full, found.lora) if found.lora is not None else found.full
    return replace(listing, tensors=tensors)
