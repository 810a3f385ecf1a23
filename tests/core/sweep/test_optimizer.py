"""Optuna proposes candidates: reproducible by its seed, repeated after a kill without an evaluation, and pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.cache.sweep_tables import SweepRow
from eigenmerge.core.errors import RecipeError
from eigenmerge.core.sweep.grid import make_axes
from eigenmerge.core.sweep.optimizer import OptunaOptimizer, Pruned

pytest.importorskip("optuna")

AXES = make_axes(
    {"exp_time": "10..3000:log", "rank_ratio": "0.9,0.5,0.7", "filter": "exponential,tikhonov"}, "swudi", intervals=True
)


def search(score: Callable[[Any], float], **options: Any) -> list[tuple[Any, ...]]:
    optimizer = OptunaOptimizer(AXES, **{"trials": 12, "sampler": "random", **options})
    found: list[tuple[Any, ...]] = []
    while trials := optimizer.ask(2):
        for trial in trials:
            found.append(tuple(trial.settings.values()))
            optimizer.tell(trial, SweepRow("key", trial.settings), score(trial.settings))
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_seed_determines_the_proposals(sampler: Any) -> None:
    def score(settings: Any) -> float:
        return float(settings["rank_ratio"])

    one = search(score, sampler=sampler, seed=3)
    assert one == search(score, sampler=sampler, seed=3) != search(score, sampler=sampler, seed=4)
    assert len(one) == 12
    for time, ratio, name in one:
        assert 10.0 <= time <= 3000.0 and ratio in (0.5, 0.7, 0.9) and name in ("exponential", "tikhonov")


def test_proposals_move_to_better_scores() -> None:
    found = search(lambda settings: -abs(settings["exp_time"] - 100.0), sampler="tpe", trials=40)
    near = [abs(time - 100.0) < 90.0 for time, _, _ in found]
    assert sum(near[20:]) > sum(near[:20])


def test_candidates_without_a_score_are_told(seed: int = 0) -> None:
    optimizer = OptunaOptimizer(AXES, trials=3, sampler="tpe", seed=seed)
    for status, value in (("failed", None), ("scored", None), ("scored", 1.0)):
        (trial,) = optimizer.ask(1)
        optimizer.tell(trial, SweepRow("key", trial.settings, status=status), value)  # type: ignore[arg-type]
    assert optimizer.ask(1) == []


def test_a_pruner_ends_a_bad_candidate_and_stored_steps_repeat_it() -> None:
    def run(stored: dict[int, SweepRow]) -> dict[int, SweepRow]:
        optimizer = OptunaOptimizer(AXES, trials=8, sampler="random", pruner="median")
        rows: dict[int, SweepRow] = {}
        for number in range(8):
            (trial,) = optimizer.ask(1)
            row = stored.get(number)
            if row is None:
                steps: list[tuple[int, float]] = []
                status: Any = "scored"
                level = 1.0 if number < 6 else 0.1 * number
                try:
                    for step in range(4):
                        steps.append((step, level))
                        trial.report(step, level)
                except Pruned:
                    status = "pruned"
                row = SweepRow(str(number), trial.settings, {"score": level}, status, steps=tuple(steps))
            rows[number] = row
            optimizer.tell(trial, row, row.metrics["score"] if row.status == "scored" else None)
        return rows

    rows = run({})
    assert [row.status for row in rows.values()] == ["scored"] * 6 + ["pruned"] * 2
    assert run({number: row for number, row in rows.items() if number < 5}) == rows


@pytest.mark.parametrize(("sampler", "package"), [("gp", "scipy"), ("cmaes", "cmaes")])
def test_a_missing_package_is_named(sampler: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from eigenmerge.core.sweep import optimizer

    monkeypatch.setattr(optimizer, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=f"needs {package}: pip install 'eigenmerge\\[sweep\\]'"):
        OptunaOptimizer(AXES, trials=1, sampler=sampler)
