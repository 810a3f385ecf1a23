"""Sweeps of small models without Prefect: what candidates are, what is kept, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.cache.kinds import KINDS, kind_of
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.errors import EvaluatorError, InterruptedRunError, RecipeError
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.storage.store import Store
from eigenmerge.core.sweep.candidate import Candidate
from eigenmerge.core.sweep.evaluators.evaluator import Evaluator, from_function
from eigenmerge.core.sweep.listener import SweepListener
from eigenmerge.core.sweep.objective import Objective
from eigenmerge.core.sweep.prepare_sweep import PreparedSweep, Search, prepare_sweep
from eigenmerge.core.sweep.run_sweep import SweepOutcome, run_sweep

from ...small_models import Models, load_checkpoint

GRID = {"exp_time": "1,30", "rank_ratio": "0.5,0.9"}
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def models(make_models: Callable[..., Models]) -> Models:
    return make_models(layers=1)


def prepare(
    models: Models, evaluate: Any = None, grid: Any = GRID, *, keys: Any = None, **options: Any
) -> PreparedSweep:
    evaluator = evaluate if evaluate is None or isinstance(evaluate, Evaluator) else from_function(evaluate, key="test")
    recipe = read_recipe(models.recipe(**{"method": "swudi", **(keys or {})}))
    return prepare_sweep(recipe, grid, evaluator, store=str(models.root / "store"), workers=1, **options)


def sweep(models: Models, evaluate: Any = None, grid: Any = GRID, *, keys: Any = None, **options: Any) -> SweepOutcome:
    own = {name: options.pop(name) for name in ("fresh", "stop", "listeners", "scratch") if name in options}
    return run_sweep(prepare(models, evaluate, grid, keys=keys, **options), **own)


def norm(candidate: Candidate) -> float:
    return float(candidate[Q].double().norm())


def test_a_candidate_is_the_checkpoint_that_a_merge_of_its_recipe_writes(models: Models, pipeline: Any) -> None:
    seen: dict[str, Any] = {}
    threads = torch.get_num_threads()

    def evaluate(candidate: Candidate) -> float:
        folder = candidate.directory()
        seen[candidate.label] = (
            candidate.state_dict(),
            load_checkpoint(folder),
            folder,
            sorted(path.name for path in folder.iterdir()),
        )
        assert torch.equal(candidate[Q], seen[candidate.label][0][Q]) and len(candidate) == len(
            seen[candidate.label][0]
        )
        return float(candidate[Q].norm())

    outcome = sweep(models, evaluate, scratch=str(models.root))
    assert torch.get_num_threads() == threads
    assert len(seen) == 4 and outcome.best is not None and outcome.recipe is not None
    pipeline(outcome.recipe, models.root / "out", store=models.root / "other store")
    merged = load_checkpoint(models.root / "out")
    state, loaded, folder, files = seen["exp_time=1, rank_ratio=0.5" if outcome.best.settings == {
        "exp_time": 1.0, "rank_ratio": 0.5} else next(k for k in seen if f"{outcome.best.settings['rank_ratio']:g}" in k
        and f"exp_time={outcome.best.settings['exp_time']:g}," in k)]  # fmt: skip
    for name, tensor in merged.items():
        assert torch.equal(tensor, state[name]) and torch.equal(tensor, loaded[name]), name
    assert state.keys() == loaded.keys() == merged.keys()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert not folder.exists() and not list(models.root.glob("eigenmerge-*"))


def test_spectra_are_computed_once_and_no_part_is_written(models: Models) -> None:
    sweep(models, norm)
    store = Store(str(models.root / "store"))
    names = [info.key for info in store.list("")]
    matrices = 7
    assert sum(key.startswith("spectra/") for key in names) == matrices
    assert not [key for key in names if key.startswith("parts/")]
    assert {kind.name for kind in KINDS if kind.folder == "sweeps/"} == {
        kind.name for key in names if (kind := kind_of(key)) is not None and key.startswith("sweeps/")
    }


def test_what_is_scored_is_not_scored_again(models: Models) -> None:
    calls: list[str] = []

    def evaluate(candidate: Candidate) -> float:
        calls.append(candidate.label)
        return norm(candidate)

    stop = StopSignal()

    class StopAfterTwo(SweepListener):
        def scored(self, *_: Any) -> None:
            if len(calls) == 2:
                stop.stop("the test")

    with pytest.raises(InterruptedRunError):
        sweep(models, evaluate, stop=stop, listeners=(StopAfterTwo(),))
    assert len(calls) == 2
    outcome = sweep(models, evaluate)
    assert (len(calls), outcome.num_scored, len(outcome.rows)) == (4, 2, 4)
    larger = sweep(models, evaluate, {"exp_time": "1,30", "rank_ratio": "0.5,0.9,1.0"})
    assert (len(calls), larger.num_scored, len(larger.rows)) == (6, 2, 6)
    assert sweep(models, evaluate, fresh=True).num_scored == 4
    assert [row.metrics for row in outcome.rows] == [
        row.metrics for row in larger.rows if row.settings["rank_ratio"] != 1.0
    ]
    assert outcome.table.column_names[:3] == ["candidate", "exp_time", "rank_ratio"]


def test_another_function_does_not_reuse_scores(models: Models) -> None:
    sweep(models, from_function(norm, key="one"))
    assert sweep(models, from_function(norm, key="two")).num_scored == 4
    assert sweep(models, from_function(norm)).num_scored == sweep(models, from_function(norm, key="one")).num_scored + 4
    assert sweep(models, from_function(lambda candidate: 1.0)).num_scored == 4
    assert sweep(models, from_function(lambda candidate: 1.0)).num_scored == 4  # its code has no name


def test_the_best_keeps_all_limits(models: Models) -> None:
    def two(candidate: Candidate) -> dict[str, float]:
        time, ratio = candidate.settings.get("exp_time", 10), candidate.settings.get("rank_ratio", 0.7)
        return {"speed": float(time or 0), "care": 1.0 - float(ratio or 0)}

    def best(**keys: Any) -> Any:
        found = sweep(models, two, objective=Objective(**keys)).best
        return None if found is None else (found.settings["exp_time"], found.settings["rank_ratio"])

    assert best() == (30.0, 0.5)  # the first metric, and the first of equal ones
    assert best(rank_by="care") == (1.0, 0.5)
    assert best(rank_by="speed", lower_is_better=frozenset({"speed"})) == (1.0, 0.5)
    assert best(rank_by="care", lower_is_better=frozenset({"care"}), limits={"speed": 20.0}) == (30.0, 0.9)
    assert best(limits={"care": 0.7}) is None
    assert best(not_below_base=True) == (30.0, 0.5)  # the base has speed 10 and care 0.3
    with pytest.raises(EvaluatorError, match="no metric 'sped'; did you mean 'speed'"):
        best(rank_by="sped")


def test_the_base_is_the_base(models: Models) -> None:
    seen: dict[str, torch.Tensor] = {}

    def evaluate(candidate: Candidate) -> float:
        seen[str(candidate.settings)] = candidate[Q]
        return 1.0

    sweep(models, evaluate, objective=Objective(not_below_base=True))
    assert torch.equal(seen["{}"], models.base_tensors[Q])


def test_candidates_that_fail_are_rows_and_are_tried_again(models: Models) -> None:
    broken = True

    def evaluate(candidate: Candidate) -> float:
        if broken and candidate.settings["rank_ratio"] == 0.9:
            raise ZeroDivisionError("no items")
        return norm(candidate)

    outcome = sweep(models, evaluate)
    assert [row.status for row in outcome.rows] == ["scored", "failed"] * 2
    assert outcome.rows[1].error == "evaluate raised ZeroDivisionError: no items"
    broken = False
    again = sweep(models, evaluate)
    assert again.num_scored == 2 and {row.status for row in again.rows} == {"scored"}


@pytest.mark.parametrize("value", [float("nan"), "0.5", None, {}, {"a": float("inf")}, True, torch.ones(2)])
def test_what_is_no_score_ends_the_sweep_at_its_first_candidate(models: Models, value: Any) -> None:
    with pytest.raises(EvaluatorError, match=r"exp_time=1, rank_ratio=0\.5: evaluate: returned .* no other candidate"):

        def evaluate(candidate: Candidate) -> Any:
            return value

        sweep(models, evaluate)


def test_numbers_of_other_libraries_are_scores(models: Models) -> None:
    outcome = sweep(models, lambda candidate: {"t": torch.tensor(0.5), "n": torch.tensor(2).numpy()})
    assert outcome.rows[0].metrics == {"t": 0.5, "n": 2.0}


def test_a_damaged_table_is_said_and_made_again(models: Models) -> None:
    outcome = sweep(models, norm)
    store = Store(str(models.root / "store"))
    store.write(outcome.table_key, store.read(outcome.table_key)[:-40])
    again = sweep(models, norm)
    assert again.num_scored == 4 and "damaged" in again.warnings[0]
    assert sweep(models, norm).num_scored == 0


def test_scores_without_data(models: Models) -> None:
    outcome = sweep(models)
    assert outcome.metric == "gcv" and outcome.lower_is_better and outcome.best is not None
    by = {tuple(row.settings.values()): row.metrics for row in outcome.rows}
    assert (by[30.0, 0.9]["interference"] or 0) < (by[1.0, 0.5]["interference"] or 0)
    outputs = sweep(models, None, {"side": "inputs,outputs"}, keys={"parameters": {"exp_time": 30}})
    assert outputs.rows[0].metrics != outputs.rows[1].metrics
    again = sweep(models, keys={"parameters": {"alignment_rho": 1.0}})
    assert [row.metrics for row in again.rows] != [row.metrics for row in outcome.rows]


def test_parallel_candidates_have_the_same_scores(models: Models) -> None:
    one = sweep(models, from_function(norm, key="one"))
    many = sweep(models, from_function(norm, key="many"), search=Search(parallel=3))
    assert {row.candidate: row.metrics for row in one.rows} == {row.candidate: row.metrics for row in many.rows}


def test_direct_methods_need_an_evaluator(models: Models) -> None:
    keys = {"method": "ties"}
    with pytest.raises(RecipeError, match="ties: has no interference operator"):
        prepare(models, None, {"density": "0.2,0.5"}, keys=keys)
    outcome = sweep(models, norm, {"density": "0.2,0.5"}, keys=keys)
    assert len({row.metrics["norm"] for row in outcome.rows}) == 2


RULE = {"match": "*", "parameters": {"exp_time": 5}}


@pytest.mark.parametrize(
    ("grid", "keys", "options", "message"),
    [
        (GRID, {"rules": [RULE]}, {}, "rules[0].parameters.exp_time sets it for all tensors"),
        ({"landweber_steps": "1,2"}, {"method": "iso_c"}, {}, "iso_c has no such parameter"),
        (GRID, {"spectra": "values"}, {}, "set spectra: full"),
        (GRID, {"calibration": {"svc": {}}}, {}, "scores without data are those of the delta before"),
        (GRID, {}, {"objective": Objective(rank_by="accuracies")}, "no metric 'accuracies'"),
        (GRID, {}, {"objective": Objective(limits={"gvc": 1.0})}, "did you mean 'gcv'"),
        (GRID, {}, {"search": Search(trials=3)}, "add --optimizer optuna"),
        (GRID, {}, {"search": Search(sampler="random")}, "belong to --optimizer optuna"),
        (GRID, {}, {"search": Search(optimizer="optuna")}, "cost less than a proposal"),
        (GRID, {}, {"search": Search(parallel=0)}, "--parallel: is 0"),
        ({"side": "inputs,both"}, {}, {}, "is merged over both sides, whose mean has no score"),
    ],
)
def test_refused_before_anything_is_computed(models: Models, grid: Any, keys: Any, options: Any, message: str) -> None:
    with pytest.raises((RecipeError, EvaluatorError)) as error:
        prepare(models, None, grid, keys=keys, **options)
    assert message in str(error.value)
    assert not list((models.root / "store").glob("spectra/*"))


def test_a_rule_for_some_layers_is_allowed(models: Models) -> None:
    prepare(models, norm, keys={"rules": [{**RULE, "match": "*q_proj*"}]})


def test_the_table_of_metrics_cannot_hide_a_parameter(models: Models) -> None:
    with pytest.raises(EvaluatorError, match="'exp_time' has the name of another column"):
        sweep(models, lambda candidate: {"exp_time": 1.0})


def test_paths_of_shared_tensors_are_removed(models: Models, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sweep(models, lambda candidate: len(candidate.state_dict()), scratch=str(scratch))
    assert list(scratch.iterdir()) == []
