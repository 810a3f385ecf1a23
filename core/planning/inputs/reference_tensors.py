"""The tensors that give the output its shapes and from which experts differ: those of the base of each slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from ...errors import CheckpointError
from ...listing import ModelListing, TensorSource
from .checkpoint import reference_tensors


@final
class ReferenceTensors:
    """Tensors of the recipe's base, or of the base of a slice.

    Parameters
    ----------
    tensors : of the base, or of the first model where there is no base
    base : the recipe's base
    bases : all bases by reference; other ones than the recipe's are those of slices
    """

    def __init__(
        self, tensors: Mapping[str, TensorSource], base: ModelListing | None, bases: Mapping[str, ModelListing]
    ) -> None:
        self._tensors = tensors
        self._base = base
        self._bases = bases
        self._other: dict[str, Mapping[str, TensorSource]] = {}

    @property
    def has_base(self) -> bool:
        """Whether the recipe has a base."""
        return self._base is not None

    def is_other(self, base: str | None) -> bool:
        """Whether the base of a slot, given by its reference, is another one than the recipe's."""
        listing = self._bases.get(base) if base is not None else None
        return listing is not None and listing is not self._base

    def tensor(self, template: str, base: str | None, output: str) -> TensorSource:
        """Return the reference's tensor of a slot.

        Parameters
        ----------
        template : name in the reference
        base : reference of the slot's base
        output : name of the output tensor, for messages

        Raises
        ------
        CheckpointError : the base of the slice does not have the tensor, or has it in another shape
        """
        reference = self._tensors[template]
        if base is None or not self.is_other(base):
            return reference
        assert self._base is not None
        listing = self._bases[base]
        if base not in self._other:
            self._other[base] = reference_tensors(listing, "is the base_model of a slice")
        source = self._other[base].get(template)
        if source is None or source.shape != reference.shape:
            found = "does not have it" if source is None else f"has shape {list(source.shape)}"
            raise CheckpointError(
                f"{output}: {listing.name}, the base_model of its slice, {found}; {self._base.name} has"
                f" {template} of {list(reference.shape)}; give bases of one architecture"
            )
        return source

    def fingerprint(self, base: str | None) -> str | None:
        """Return the fingerprint of the base of a slot; None without a base."""
        if base is not None and self.is_other(base):
            return self._bases[base].fingerprint
        return self._base.fingerprint if self._base is not None else None
