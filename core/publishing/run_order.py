"""Numbers that order the runs of one publication, without comparing clocks of machines.

    <publish>/runs/000000000007     the seventh run has looked at the registry

A run takes its number before it looks at the registry, so a higher number has seen later experts.
"""

from __future__ import annotations

import contextlib

from ..errors import StoreError
from ..storage.store import Store

_FOLDER = "runs/"
_DIGITS = 12


def take_number(store: Store, published: int) -> int:
    """Return a number that no other run has, above `published` and above those that were taken before.

    Parameters
    ----------
    published : the number of the run that published last, 0 if none did
    """
    number = max([published, *_taken(store)]) + 1
    while not store.create(f"{_FOLDER}{number:0{_DIGITS}d}", b""):
        number += 1
    return number


def forget_numbers(store: Store, published: int) -> None:
    """Delete the objects of numbers up to `published`, which a later run cannot get any more."""
    with contextlib.suppress(StoreError):  # they cost nothing
        store.delete([f"{_FOLDER}{number:0{_DIGITS}d}" for number in _taken(store) if number <= published])


def _taken(store: Store) -> list[int]:
    names = (info.key.removeprefix(_FOLDER) for info in store.list(_FOLDER))
    return [int(name) for name in names if len(name) == _DIGITS and name.isascii() and name.isdigit()]
