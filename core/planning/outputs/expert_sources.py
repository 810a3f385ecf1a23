"""The stored tensor of each expert for one output tensor, checked and fitted to the output's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from ...errors import CheckpointError, ShapeError
from ...formats.digest import hash_json
from ...formats.dtypes import FLOAT8_DTYPES, MERGEABLE_DTYPES
from ...listing import LoraSource, StackedLora, TensorSource
from ...views import select
from ..inputs.checkpoint import UNCHANGED, Checkpoint
from ..inputs.reference_tensors import ReferenceTensors
from ..inputs.storage_precision import has_storage_noise, rounds_values_of
from ..plan import Rows
from .slots import Slot
from .vocabulary.fit_vocabulary import VocabularyPlanner


@dataclass(frozen=True, slots=True)
class Target:
    """The output tensor that is planned.

    reference : the stored tensor of the base, or of the first model
    shape : in the output
    base_rows : where rows of the base's tensor go, if its vocabulary differs from the output's
    token_rows, padding_start : as in `TensorPlan`
    identity : identifies the reference's tensor in keys
    """

    slot: Slot
    reference: TensorSource
    shape: tuple[int, ...]
    base_rows: Rows | None
    identity: str
    token_rows: tuple[tuple[int, TensorSource | None], ...] = ()
    padding_start: int | None = None

    @property
    def is_unchanged(self) -> bool:
        """Whether the output has the rows of the reference."""
        return self.base_rows is None and self.shape == self.reference.shape and not self.token_rows


@dataclass(frozen=True, slots=True)
class ExpertSource:
    """One expert's data for a target, rows mapped to the output vocabulary.

    full, lora, rounded, noise : as in `ExpertTensor`
    identity : identifies the data in keys
    """

    full: TensorSource | None
    lora: LoraSource | StackedLora | None
    identity: str
    rows: Rows | None = None
    rounded: bool = False
    noise: Literal["cut", "shrink"] | None = None


# Suffix of the identity, and so of keys, where entries that storage rounded count as unchanged. Increase with its rule.
_ROUNDED = "#rounded-1"
# The same where a float8 tensor that is nothing but rounding counts as unchanged, for methods of every kind.
_FROZEN = "#frozen-1"

BASE_SOURCE = ExpertSource(None, None, UNCHANGED)  # an expert that lacks the tensor and counts as the base


@final
class SourceFinder:
    """Finds the stored tensors of the base and of all experts for each output tensor.

    Parameters
    ----------
    noise : `ExpertTensor.noise` of experts whose storage rounds
    """

    def __init__(
        self,
        experts: Sequence[Checkpoint],
        bases: ReferenceTensors,
        vocabulary: VocabularyPlanner,
        noise: Literal["cut", "shrink"] | None = None,
    ) -> None:
        self._noise: Literal["cut", "shrink"] | None = noise
        self._experts = experts
        self._bases = bases
        self._vocabulary = vocabulary

    def make_target(self, slot: Slot, reference: TensorSource) -> Target:
        """Return the target of a slot, with the number of rows of the output's vocabulary."""
        identity = f"{self._bases.fingerprint(slot.group.base) or self._experts[0].fingerprint}/{slot.template}"
        if self._vocabulary.matches_tokens and self._vocabulary.has_column_per_token(slot.template):
            self._vocabulary.check_columns_stay(slot.name, reference)
        if not (self._vocabulary.matches_tokens and self._vocabulary.is_by_token(slot.template)):
            return Target(slot, reference, reference.shape, None, identity)
        fitted = self._vocabulary.fit_base(reference)
        shape = (self._vocabulary.output_rows(reference.shape[0]), *reference.shape[1:])
        if fitted.rows is not None or shape != reference.shape:
            identity += f"{fitted.key_suffix}->{shape[0]}"
        token_rows, padding = self._configured_rows(slot, reference), self._vocabulary.padding_start
        if token_rows or padding is not None:
            identity += f"#{hash_json([[row, name] for row, _, name in token_rows])}/{padding}"
        placed = tuple((row, source) for row, source, _ in token_rows)
        return Target(slot, reference, shape, fitted.rows, identity, placed, padding)

    def _configured_rows(self, slot: Slot, reference: TensorSource) -> list[tuple[int, TensorSource | None, str]]:
        """Return output row, stored row and identity of what `tokenizer.tokens` takes from one model."""
        found: list[tuple[int, TensorSource | None, str]] = []
        for one in self._vocabulary.configured_rows():
            if one.own is None:
                found.append((one.row, None, "zero"))
                continue
            fingerprint = self._bases.fingerprint(slot.group.base) or self._experts[0].fingerprint
            source, identity = reference, f"{fingerprint}/{slot.template}"
            if one.expert is not None:
                checkpoint = self._experts[one.expert]
                contribution = checkpoint.contribution(slot.name, reference)
                if contribution is None or contribution.lora is not None:
                    raise CheckpointError(
                        f"{slot.name}: {checkpoint.name} {'adapts it' if contribution else 'does not have it'}, and"
                        " tokenizer.tokens takes a row of it; name another source"
                    )
                source, identity = contribution.full or reference, contribution.identity
            if one.own >= source.shape[0]:
                raise CheckpointError(
                    f"{slot.name}: tokenizer.tokens takes row {one.own}, found {source.shape[0]} rows; correct token_id"
                )
            found.append((one.row, select(source, 0, one.own, one.own + 1), f"{identity}:{one.own}"))
        return found

    def find(self, target: Target) -> list[ExpertSource | None]:
        """Return the source of each member of the group, in the group's order; None where a member lacks the tensor.

        Raises
        ------
        CheckpointError : a stored tensor has an integer dtype, or an adapter's rows would have to be reordered
        ShapeError : a stored tensor does not fit the target
        """
        slot, reference = target.slot, target.reference
        by_token = self._vocabulary.is_by_token(slot.template)
        found: list[ExpertSource | None] = []
        for member in slot.group.members:
            checkpoint = self._experts[member.expert]
            contribution = checkpoint.contribution(slot.source_name(member), reference)
            if contribution is None:
                found.append(None)
                continue
            full, rows, identity = contribution.full, None, contribution.identity
            if full is None and self._bases.is_other(slot.group.base):
                raise CheckpointError(
                    f"{slot.name}: {checkpoint.name} is an adapter on the recipe's base_model, its slice has another"
                    " base_model; write MODEL+ADAPTER"
                )
            if full is None:
                if contribution.lora is not None and not target.is_unchanged:
                    raise self._rows_error(slot, checkpoint)
                found.append(ExpertSource(None, contribution.lora, identity))
                continue
            if full.dtype not in MERGEABLE_DTYPES:
                raise CheckpointError(
                    f"{slot.name}: {checkpoint.name} stores it as {full.dtype}, expected a float as in the base"
                    f" ({reference.dtype}); give the unquantized model"
                )
            if self._vocabulary.has_column_per_token(slot.template) and len(full.shape) == 2 and full.shape[0] == 1:
                fitted = self._vocabulary.fit_columns(slot.name, member.expert, full, reference.shape[1])
                if fitted.source != full:
                    full, identity = fitted.source, f"{identity}#columns{full.shape[1]}"
            elif full.shape != target.shape or (by_token and self._vocabulary.matches_tokens):
                if not by_token or full.shape[1:] != target.shape[1:] or not full.shape:
                    raise self._shape_error(slot, reference, full, checkpoint)
                fitted = self._vocabulary.fit_expert(slot.name, member.expert, full, reference.shape[0])
                if fitted.rows is not None or fitted.source is not full:
                    if contribution.lora is not None:
                        raise self._rows_error(slot, checkpoint)
                    full, rows, identity = fitted.source, fitted.rows, identity + fitted.key_suffix
            rounded = self._bases.has_base and rounds_values_of(full, reference)
            if rounded:
                identity += _ROUNDED
            noise = self._noise if self._bases.has_base and has_storage_noise(full) else None
            if noise is not None and full.dtype in FLOAT8_DTYPES:
                identity += _FROZEN
            found.append(ExpertSource(full, contribution.lora, identity, rows, rounded, noise))
        return found

    def _rows_error(self, slot: Slot, checkpoint: Checkpoint) -> CheckpointError:
        return CheckpointError(
            f"{slot.name}: {checkpoint.name} adapts it and tokenizer_source changes its rows; merge the adapter"
            " into its base first"
        )

    def _shape_error(
        self, slot: Slot, reference: TensorSource, full: TensorSource, checkpoint: Checkpoint
    ) -> ShapeError:
        role = "the base" if self._bases.has_base else "the first model"
        hint = "give experts that were fine-tuned from this base"
        if full.shape == reference.shape[::-1]:
            hint = "it is stored transposed; " + hint
        return ShapeError(
            f"{slot.name}: {checkpoint.name} has shape {list(full.shape)}, {role} has {list(reference.shape)}; {hint}"
        )

    def missing_error(self, slot: Slot, sources: Sequence[ExpertSource | None]) -> CheckpointError:
        """Return the error for a tensor that some members lack."""
        without = [
            self._experts[member.expert].name
            for member, source in zip(slot.group.members, sources, strict=True)
            if source is None
        ]
        others = f" and {len(without) - 1} more" if len(without) > 1 else ""
        advice = "give base_model, or models with the same tensors"
        if self._bases.has_base:
            advice = (
                "set `missing: base` to use the base's tensor instead,"
                f" or add a rule {{match: {slot.name!r}, action: keep_base}}"
            )
        return CheckpointError(f"{slot.name}: {without[0]}{others} does not have it, other models do; {advice}")
