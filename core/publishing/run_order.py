"""Numbers that order the runs of one publication, without comparing clocks of machines.

    <publish>/.eigenmerge-runs/000000000007     the seventh run is looking at the registry

A run takes its number before it looks at the registry, so a higher number has seen later experts.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..errors import StoreError
from ..storage.store import Store

RUNS = ".eigenmerge-runs/"
_DIGITS = 12


def take_number(store: Store, published: int) -> int:
    """Return a number that no other run has, above `published` and above those that were taken before.

    Parameters
    ----------
    published : the number of the run that published last, 0 if none did
    """
    number = max([published, *_taken(store)]) + 1
    while not store.create(f"{RUNS}{number:0{_DIGITS}d}", b""):
        number += 1
    return number


def return_number(store: Store, number: int, published: int) -> None:
    """Delete the object of a number whose run has ended, and those up to `published`, which killed runs have left.

    A number that was published is never given again; one that was not published may be.
    """
    with contextlib.suppress(StoreError):  # they cost nothing
        store.delete([f"{RUNS}{taken:0{_DIGITS}d}" for taken in _taken(store) if taken <= published or taken == number])
    if store.is_local:
        with contextlib.suppress(OSError):  # numbers of other runs are there
            Path(store.root_uri, RUNS).rmdir()


def _taken(store: Store) -> list[int]:
    names = (info.key.removeprefix(RUNS) for info in store.list(RUNS))
    return [int(name) for name in names if len(name) == _DIGITS and name.isascii() and name.isdigit()]
