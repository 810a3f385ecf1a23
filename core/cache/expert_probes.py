"""Stored probes of experts: an object beside each spectrum, so that runs which read no expert can measure them."""

from __future__ import annotations

from ..errors import CorruptObjectError
from ..numerics.interference.expert_probes import Probes
from ..planning.keys import probes_key
from ..storage.store import Store
from .sealed_tensors import read_seal, read_sealed, write_sealed


def write_probes(store: Store, spectrum_key: str, probes: Probes) -> None:
    """Write the probes. Call it before the spectrum is written: whoever finds the spectrum then finds them."""
    write_sealed(store, probes_key(spectrum_key), probes.to_tensors(), {"spectrum": spectrum_key})


def read_probes(store: Store, spectrum_key: str, shape: tuple[int, int], num_experts: int) -> Probes:
    """Return stored probes, checked.

    Raises
    ------
    ObjectNotFoundError : the store has none; an earlier version wrote the spectrum
    CorruptObjectError : damaged, or those of another matrix
    """
    seal = read_seal(store, probes_key(spectrum_key))
    if seal.facts.get("spectrum") != spectrum_key:
        raise CorruptObjectError(f"{store.display(seal.key)}: are the probes of another spectrum")
    return Probes.from_tensors(read_sealed(store, seal), shape, num_experts)
