"""Whole merges beside mergekit: the same recipe by both commands, from start to exit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..case import Case
from ..results import Figures
from ..workplace import Workplace, all_cores

_SMALL, _LARGE = "7 MB", "400 MB"
_MOST_EXPERTS = 8
# By method and number of experts: runs of a measurement, and of a check. A turn with eight experts takes 15 s for the
# first two methods, 50 s for DARE-TIES and 110 s for TIES.
_RUNS = {
    ("linear", 3): (3, 2),
    ("task_arithmetic", 3): (3, 2),
    ("dare_ties", 3): (2, 1),
    ("ties", 3): (2, 1),
    ("linear", 8): (2, 1),
    ("task_arithmetic", 8): (2, 1),
    ("dare_ties", 8): (2, 0),
    ("ties", 8): (1, 0),
}


def cases(place: Workplace) -> Iterator[Case]:
    """Yield the merges, the quickest first."""
    yield _case(place, f"{_SMALL}, linear, 3 experts", _SMALL, "linear", 3, (3, 2), warmups=1)
    yield _case(place, f"{_SMALL}, linear, 3 experts, fresh home", _SMALL, "linear", 3, (2, 2), fresh_home=True)
    for (method, count), runs in _RUNS.items():
        yield _case(place, f"{_LARGE}, {method}, {count} experts", _LARGE, method, count, runs)


def _case(
    place: Workplace,
    label: str,
    size: str,
    method: str,
    num_experts: int,
    runs: tuple[int, int],
    *,
    warmups: int = 0,
    fresh_home: bool = False,
) -> Case:
    def recipe() -> Path:
        # Models of eight experts at once, which serve for three.
        models = place.models(size, num_experts if size == _SMALL else _MOST_EXPERTS)
        return place.recipe(models, method, num_experts)

    def ours() -> Figures:
        return home(lambda environment: place.merge(recipe(), environment=environment))

    def theirs() -> Figures:
        return home(lambda environment: place.merge_with_mergekit(recipe(), environment))

    home = _in_fresh_home if fresh_home else _in_this_home
    contenders = {"eigenmerge": ours} | ({"mergekit": theirs} if place.mergekit else {})
    return Case("merges", label, contenders, *runs, warmups=warmups)


def _in_this_home(act: Callable[[dict[str, str]], Figures]) -> Figures:
    return act(all_cores())


def _in_fresh_home(act: Callable[[dict[str, str]], Figures]) -> Figures:
    """Act in the environment of a new user: no database of Prefect, and no migrated copy of one in the cache."""
    with tempfile.TemporaryDirectory(prefix="eigenmerge-home-", ignore_cleanup_errors=True) as home:
        return act(fresh_home(all_cores(), Path(home)))


def fresh_home(environment: dict[str, str], home: Path) -> dict[str, str]:
    """Return the environment with an empty home, and nothing that names another place for what programs keep."""
    moved = {"HOME": "", "PREFECT_HOME": ".prefect", "XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config"}
    own = {name: value for name, value in environment.items() if name not in ("PREFECT_API_URL", "HF_HOME")}
    return {**own, **{name: str(home / folder) for name, folder in moved.items()}}
