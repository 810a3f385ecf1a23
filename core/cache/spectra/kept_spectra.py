"""Spectra that a sweep keeps in memory, so that its candidates do not read and check them again."""

from __future__ import annotations

import threading
from typing import final

import torch

from ...storage.store import Store
from .reader import StoredSpectrum, read_spectrum


@final
class KeptSpectra:
    """Reads whole spectra of one store and keeps them while they fit. Thread-safe.

    What is kept stays: every candidate reads the spectra in the same order, so that replacing the oldest ones would
    find none of them again.

    Parameters
    ----------
    max_bytes : of all kept spectra; 0 keeps none
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._spectra: dict[str, StoredSpectrum] = {}
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of the kept spectra."""
        return self._num_bytes

    def get(self, key: str) -> StoredSpectrum | None:
        """Return a kept spectrum, whole; None where it is not kept."""
        return self._spectra.get(key)

    def read_values(self, store: Store, key: str, most_bytes: int | None) -> StoredSpectrum:
        """Return values and statistics of a spectrum, and its vectors where it is kept. Errors as `read_spectrum`."""
        found = self._spectra.get(key)
        if found is not None:
            return found
        head = read_spectrum(store, key, values_only=True, most_bytes=most_bytes)
        if not head.has_vectors or not self._reserve(num_bytes := _num_bytes(head)):
            return head
        try:
            whole = read_spectrum(store, key, most_bytes=most_bytes)
        except BaseException:
            self._reserve(-num_bytes)
            raise
        with self._lock:
            if key in self._spectra:  # read by another thread at the same time
                self._num_bytes -= num_bytes
            return self._spectra.setdefault(key, whole)

    def _reserve(self, num_bytes: int) -> bool:
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                return False
            self._num_bytes += num_bytes
            return True


def _num_bytes(stored: StoredSpectrum) -> int:
    spectrum = stored.spectrum
    tensors: list[torch.Tensor] = [spectrum.values, spectrum.right, *spectrum.left.values()]
    return sum(tensor.nbytes for tensor in [*tensors, *spectrum.statistics.values()])
