"""Counts of what a GPU would do besides arithmetic: bytes that cross, and waits of the host for the device."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

import eigenmerge.core

CORE = next(iter(eigenmerge.core.__path__))


@dataclass(slots=True)
class Counts:
    """Of one tensor of the output.

    to_device, to_host : bytes that cross
    copies : transfers in both directions; reading one number is a synchronization and no copy
    synchronizations : times that the host waits until the device has computed a result, copies to the host included
    operations : tensor operations on the device
    """

    to_device: int = 0
    to_host: int = 0
    copies: int = 0
    synchronizations: int = 0
    operations: int = 0


@dataclass(slots=True)
class Ledger:
    """Counts since the last `take`, and the lines of core that synchronize or copy.

    sites : (file, line, operation) to the number of times
    """

    now: Counts = field(default_factory=Counts)
    sites: Counter[tuple[str, int, str]] = field(default_factory=Counter[tuple[str, int, str]])

    def take(self) -> Counts:
        """Return the counts so far, and begin at zero."""
        found, self.now = self.now, Counts()
        return found

    def synchronize(self, operation: str, num_bytes: int = 0) -> None:
        """Record a wait of the host for the device, and the bytes of the result that it waits for."""
        self.now.synchronizations += 1
        self.now.to_host += num_bytes
        self.sites[(*_site(), operation)] += 1

    def cross(self, operation: str, num_bytes: int, *, to_device: bool) -> None:
        """Record a copy between the devices. A copy to the host from a GPU waits for the device."""
        self.now.copies += 1
        if to_device:
            self.now.to_device += num_bytes
            self.sites[(*_site(), operation)] += 1
        else:
            self.synchronize(operation, num_bytes)


def _site() -> tuple[str, int]:
    """Return the innermost line of core that is being executed."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(CORE):
            return name[len(CORE) + 1 :], frame.f_lineno
        frame = frame.f_back
    return "", 0
