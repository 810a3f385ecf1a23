"""Tied weights: one weight under several names, of which a checkpoint may store all, some or one.

Which names are tied follows from the data: `ModelListing.equal_names` holds token matrices with equal bytes. Where a
name is not stored at all, config.json says whether the model ties it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from ....errors import CheckpointError
from ....listing import ModelListing, TensorSource
from ...names import natural_key
from ..checkpoint import Checkpoint
from .token_matrices import Role, tie_flag, ties_unstored_head, token_roles


@final
class TiedWeights:
    """The tied weights of the reference, and where each expert stores them.

    roles : role of each tensor of the reference with one row for each token
    followers : the name of the weight that decides, by the name of each weight that is tied to it

    Parameters
    ----------
    tensors : the reference's
    keeps_base : `missing: base`: an expert without a tensor counts as the base
    to_adapter : the output is an adapter, which holds changes of single modules

    Raises
    ------
    CheckpointError : an expert changes one of two tied weights, so that the output cannot be tied
    """

    def __init__(
        self,
        reference: ModelListing,
        tensors: Mapping[str, TensorSource],
        experts: Sequence[Checkpoint],
        *,
        keeps_base: bool,
        to_adapter: bool,
    ) -> None:
        self._reference = reference
        self._tensors = tensors
        self._keeps_base = keeps_base
        self.roles = token_roles(tensors, reference.config)
        self.followers: dict[str, str] = {}
        for expert in experts:
            self._find_aliases(expert)
        for name, leader in self._tied_pairs():
            if self._follows(name, leader, experts, to_adapter=to_adapter):
                self.followers[name] = leader
        has_head = "lm_head" in self.roles.values()
        if not has_head and ties_unstored_head(reference.config) and not to_adapter:
            for expert in experts:
                self._check_unstored_head(expert)

    def _tied_pairs(self) -> list[tuple[str, str]]:
        """Return (name, leader) for the reference's names with equal bytes; the leader is an input embedding."""
        groups: dict[str, list[str]] = {}
        for name, first in self._reference.equal_names.items():
            groups.setdefault(first, [first]).append(name)
        pairs: list[tuple[str, str]] = []
        for group in groups.values():
            names = sorted((name for name in group if name in self.roles), key=self._order)
            pairs += [(name, names[0]) for name in names[1:]]
        return pairs

    def _order(self, name: str) -> tuple[object, ...]:
        return self.roles[name] == "lm_head", len(name.split(".")), natural_key(name)

    def _find_aliases(self, expert: Checkpoint) -> None:
        """Find each token matrix that an expert lacks under another name of the same weight."""
        if expert.on_base:
            return
        flag = tie_flag(expert.listing.config)
        partners: dict[str, set[str]] = {}
        for one, other in self._tied_pairs():
            partners.setdefault(one, set()).add(other)
            partners.setdefault(other, set()).add(one)
        own_roles: Mapping[str, Role] | None = None
        for name, role in self.roles.items():
            if name in expert.names:
                continue
            tied = [expert.names[other] for other in sorted(partners.get(name, ())) if other in expert.names]
            if tied and (flag is not False or role != "lm_head"):
                expert.add_alias(name, tied[0])
                continue
            if own_roles is None:
                own_roles = token_roles(expert.tensors, expert.listing.config)
            stored = self._only_candidate(expert, name, role, own_roles, may_tie=flag is not False)
            if stored is not None:
                expert.add_alias(name, stored)
            elif role == "lm_head" and "embedding" in own_roles.values() and ties_unstored_head(expert.listing.config):
                self._refuse_tied_expert(expert, name)

    def _only_candidate(
        self, expert: Checkpoint, name: str, role: Role, own_roles: Mapping[str, Role], *, may_tie: bool
    ) -> str | None:
        """Return the one weight of an expert without a place that has this role and these columns."""
        shape = self._tensors[name].shape
        equal = expert.listing.equal_names
        found = [
            own
            for own in expert.extra_names()
            if own in own_roles
            and (own_roles[own] == role or (may_tie and "bias" not in (role, own_roles[own])))
            and len(expert.tensors[own].shape) == len(shape)
            and (expert.tensors[own].shape[1:] == shape[1:] if len(shape) > 1 else expert.tensors[own].shape == shape)
        ]
        return min(found) if found and len({equal.get(own, own) for own in found}) == 1 else None

    def _refuse_tied_expert(self, expert: Checkpoint, name: str) -> None:
        if self._keeps_base:
            return
        raise CheckpointError(
            f"{name}: {expert.name} does not store it and ties its output projection to its embedding, in"
            f" {self._reference.name} the two differ; give models that agree in tie_word_embeddings, or set"
            " `missing: base` to keep the base's"
        )

    def _follows(self, name: str, leader: str, experts: Sequence[Checkpoint], *, to_adapter: bool) -> bool:
        """Return whether the output's tensor equals the leader's, whatever the recipe says about its own name."""
        untied = tie_flag(self._reference.config) is False
        if untied and all(name in expert.names for expert in experts if not expert.on_base):
            return False
        for expert in experts:
            touched = expert.adapted.intersection((name, leader))
            if touched and not (len(touched) == 2 and expert.saves_equal(name, leader)):
                if to_adapter:
                    return False
                raise self._adapter_error(expert, min(touched), f"{name} and {leader}")
            own, own_leader = expert.names.get(name), expert.names.get(leader)
            if expert.on_base or own is None:
                if not expert.on_base and tie_flag(expert.listing.config) is False and self.roles[name] == "lm_head":
                    return False
                continue
            if own_leader is None or expert.is_equal(own, own_leader):
                continue
            if untied:
                return False
            raise self._untied_error(expert, own, own_leader)
        return True

    def _check_unstored_head(self, expert: Checkpoint) -> None:
        """Check that an expert changes the output projection as its embedding, where the reference stores only that."""
        embeddings = [name for name, role in self.roles.items() if role == "embedding"]
        if not expert.on_base:
            roles = token_roles(expert.tensors, expert.listing.config)
            for own in expert.extra_names():
                if roles.get(own) != "lm_head":
                    continue
                stored = [expert.names[name] for name in embeddings if name in expert.names]
                if not any(expert.is_equal(own, other) for other in stored):
                    raise self._untied_error(expert, own, stored[0] if stored else "the embedding")
                expert.use(own)
        for name in embeddings:
            changed = name in expert.adapted and not expert.changes_tied_head(name)
            if changed or expert.stores_other_head(name, self._tensors[name].shape[0]):
                raise self._adapter_error(expert, name, f"{name} and the output projection")

    def _untied_error(self, expert: Checkpoint, own: str, own_leader: str) -> CheckpointError:
        return CheckpointError(
            f"{own}: {expert.name} stores other values than in {own_leader}, {self._reference.name} ties the two; give"
            " an expert that ties them, or a base that stores both (tie_word_embeddings: false)"
        )

    def _adapter_error(self, expert: Checkpoint, touched: str, tied: str) -> CheckpointError:
        return CheckpointError(
            f"{touched}: the adapter {expert.name} changes this one of the tied weights {tied}, a merged checkpoint"
            " cannot; write `output: {format: adapter}`, or give a base that stores both (tie_word_embeddings: false)"
        )
