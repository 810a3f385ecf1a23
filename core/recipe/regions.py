"""Regions of the output: the whole model, or one of its `modules`, with the models or slices that it is merged from."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import ParameterSettings
from .parts import InputModel, OutputSlice


@dataclass(frozen=True, slots=True)
class Region:
    """One entry of `modules`, or what stands at the top level of a recipe without modules.

    module : the module's name; None for the whole model
    parameters : of the module, between those of slices and the global ones
    """

    module: str | None
    models: list[InputModel] | None
    slices: list[OutputSlice] | None
    parameters: ParameterSettings | None = None

    @property
    def place(self) -> str:
        """The beginning of the places of its keys in messages: "" or "modules.encoder."."""
        return f"modules.{self.module}." if self.module is not None else ""

    @property
    def references(self) -> list[str]:
        """The models in the region's order: every entry of `models`, or of the sources of `slices`."""
        if self.models is not None:
            return [item.model for item in self.models]
        return [source.model for part in self.slices or () for source in part.sources]
