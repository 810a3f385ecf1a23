"""Prepare a sweep: read nothing but headers, plan its candidates, and find every error that needs no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..choices import OptimizerName, PrunerName, SamplerName
from ..coordination.machine_memory import machine_memory
from ..coordination.worker_count import choose_worker_count
from ..errors import DestinationError, RecipeError
from ..formats.digest import hash_json
from ..formats.file_names import MANIFEST_NAME
from ..formats.store_folders import DEFAULT_STORE
from ..numerics.method import SpectralMethod
from ..numerics.registry import get_method
from ..output.destination import prepare_destination
from ..planning.plan import Plan
from ..planning.planner import run_settings
from ..recipe.parts import Rule
from ..recipe.precedence import all_scopes
from ..recipe.recipe import Recipe
from ..recipe.settings import Scalar
from ..run import Run
from ..steps.make_plan import PlanInputs, list_inputs, plan_inputs
from ..steps.open_run import open_run
from ..storage.reachable import check_reachable
from ..storage.store import Store
from .evaluators.evaluator import Evaluator
from .grid import MOST_CANDIDATES, Axis, Settings, corner_settings, describe, make_axes
from .objective import Objective, check_metric_names
from .optimizer import GridOptimizer, Optimizer, OptunaOptimizer
from .spectral_scores import DATA_FREE_METRICS, check_scorable, no_data_free_scores

_DEFAULT_TRIALS = 30
_SPECTRA_SHARE = 4  # without a memory limit, spectra take a quarter of what is available


@dataclass(frozen=True, slots=True)
class Search:
    """How candidates are chosen and when they run.

    trials : candidates of an optimizer; a grid is searched whole
    seed : of the sampler
    parallel : candidates that are evaluated at the same time
    """

    optimizer: OptimizerName = "grid"
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "none"
    trials: int | None = None
    seed: int = 0
    parallel: int = 1


@dataclass(frozen=True, slots=True)
class PreparedSweep:
    """A sweep whose candidates can be planned, and whose store can be written; no weight has been read.

    evaluator : None scores without data
    known : plans of some candidates, by settings as text
    """

    key: str
    recipe: Recipe
    axes: tuple[Axis, ...]
    evaluator: Evaluator | None
    objective: Objective
    search: Search
    inputs: PlanInputs
    store: Store
    workers: int
    device: str = "cpu"
    max_memory: int | None = None
    allow_nonfinite: bool = False
    known: dict[str, Plan] = field(default_factory=dict[str, Plan], repr=False)

    def recipe_of(self, settings: Settings) -> Recipe:
        """Return the recipe of a candidate."""
        return with_parameters(self.recipe, settings)

    def plan_of(self, settings: Settings) -> Plan:
        """Return the plan of a candidate. Errors as `make_plan`."""
        label = describe(settings)
        return self.known[label] if label in self.known else self._plan(self.recipe_of(settings))

    def base_plan(self) -> Plan:
        """Return a plan whose result is the base model."""
        return self._plan(
            self.recipe.model_copy(update={"rules": [Rule(match="*", action="keep_base")], "calibration": None})
        )

    def run_of(self, plan: Plan) -> Run:
        """Return what evaluates a plan."""
        return Run(plan, self.store, self.recipe.storage_options)

    def check_destination(self, uri: str, *, overwrite: bool) -> None:
        """Check that the best candidate can be merged into a place, before anything is computed.

        A place with a merge is left to the merge of the best candidate, which may be that one.

        Raises
        ------
        DestinationError, StoreError : as `prepare_destination`
        """
        check_reachable([uri], self.recipe.storage_options)
        target = Store(uri, self.recipe.storage_options)
        plan = next(iter(self.known.values()))
        try:
            prepare_destination(plan, uri, target, overwrite=overwrite, run_store=self.store)
        except DestinationError:
            if overwrite or not target.exists(MANIFEST_NAME):
                raise

    def make_optimizer(self, metric_is_lower_better: bool) -> Optimizer:
        """Return what proposes the candidates, at its beginning."""
        if self.search.optimizer == "grid":
            return GridOptimizer(self.axes)
        return OptunaOptimizer(
            self.axes,
            trials=self.search.trials or _DEFAULT_TRIALS,
            sampler=self.search.sampler,
            pruner=self.search.pruner,
            seed=self.search.seed,
            lower_is_better=metric_is_lower_better,
        )

    def spectra_bytes(self) -> int:
        """Return how much memory the candidates may use for spectra, beside the workers that merge their tensors."""
        peak = max(plan.peak_bytes for plan in self.known.values())
        if self.max_memory is None:
            return machine_memory().available // _SPECTRA_SHARE
        return max(0, self.max_memory - peak * self.workers * self.search.parallel)

    def _plan(self, recipe: Recipe) -> Plan:
        settings = run_settings(recipe, device=self.device, allow_nonfinite=self.allow_nonfinite)
        return plan_inputs(self.inputs, recipe, settings, max_memory=self.max_memory)


def prepare_sweep(
    recipe: Recipe,
    grid: Mapping[str, str | Scalar | Sequence[Scalar]],
    evaluator: Evaluator | None,
    *,
    objective: Objective | None = None,
    search: Search | None = None,
    store: str | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    workers: int | None = None,
    allow_nonfinite: bool = False,
) -> PreparedSweep:
    """Plan the candidates of a sweep. Parameters and errors as `deployments.python_sweep.sweep`."""
    search = search or Search()
    axes = make_axes(grid, recipe.merge_method, intervals=search.optimizer != "grid")
    objective = _complete(objective or Objective(), evaluator, axes)
    _check_search(search, evaluator)
    _check_recipe(recipe, evaluator, objective)
    options = recipe.storage_options
    place = store or recipe.store or DEFAULT_STORE
    check_reachable([place], options)
    budget = max_memory or recipe.max_memory
    inputs = list_inputs(with_parameters(recipe, next(corner_settings(axes))))
    make = partial(
        PreparedSweep,
        recipe=recipe,
        axes=axes,
        evaluator=evaluator,
        objective=objective,
        search=search,
        inputs=inputs,
        device=device,
        max_memory=budget,
        allow_nonfinite=allow_nonfinite,
    )
    prepared = make(key="", store=Store(place, options), workers=1)
    for settings in corner_settings(axes):  # the others have the same values in other combinations
        prepared.known[describe(settings)] = prepared.plan_of(settings)
    plans = list(prepared.known.values())
    _check_effects(prepared)
    for plan in plans if evaluator is None else ():
        check_scorable(plan)
    if search.optimizer == "optuna":
        prepared.make_optimizer(False)  # its packages are missing, or not
    key = _sweep_key(recipe, plans[0], axes, evaluator)
    requested = recipe.runner.workers if workers is None else workers
    count = min(choose_worker_count(plan, requested, budget, device) for plan in plans)
    opened = open_run(plans[0], Store(place, options), options).store
    return make(key=key, store=opened, workers=count, known=prepared.known)


def with_parameters(recipe: Recipe, settings: Settings) -> Recipe:
    """Return a recipe with other global parameters. The values are those of `Axis`, which are checked."""
    return recipe.model_copy(update={"parameters": {**(recipe.parameters or {}), **settings}})


def _complete(objective: Objective, evaluator: Evaluator | None, axes: Sequence[Axis]) -> Objective:
    """Return the objective with what the evaluator says of its metrics, after a check of their names if it does."""
    metrics = tuple(DATA_FREE_METRICS) if evaluator is None else evaluator.metrics
    lower = frozenset(name for name, is_lower in DATA_FREE_METRICS.items() if is_lower)
    lower = (lower if evaluator is None else evaluator.lower_is_better) | objective.lower_is_better
    found = Objective(objective.rank_by, objective.lower_is_better, objective.limits, objective.not_below_base)
    if metrics:
        check_metric_names(metrics, [axis.name for axis in axes])
        found.metric(metrics)
    return Objective(objective.rank_by, lower, objective.limits, objective.not_below_base)


def _check_search(search: Search, evaluator: Evaluator | None) -> None:
    if search.optimizer == "grid" and search.trials is not None:
        raise RecipeError("--trials: a grid is searched whole; add --optimizer optuna, or remove --trials")
    if search.optimizer == "grid" and (search.sampler, search.pruner) != ("tpe", "none"):
        raise RecipeError("--sampler and --pruner belong to --optimizer optuna")
    for name, number, most in (("trials", search.trials, MOST_CANDIDATES), ("parallel", search.parallel, 1024)):
        if number is not None and not 1 <= number <= most:
            raise RecipeError(f"--{name}: is {number}; expected 1 to {most}")
    if search.pruner != "none" and (evaluator is None or isinstance(evaluator.identity, list)):
        what = "scores without data have no steps" if evaluator is None else "the steps of several evaluators differ"
        raise RecipeError(f"--pruner {search.pruner}: {what}; remove it")
    if search.optimizer != "grid" and evaluator is None:
        raise RecipeError(
            "--optimizer: scores without data cost less than a proposal; search a grid, or give an evaluator"
        )


def _check_recipe(recipe: Recipe, evaluator: Evaluator | None, objective: Objective) -> None:
    method = get_method(recipe.merge_method)
    spectral = isinstance(method, SpectralMethod)
    if spectral and recipe.spectra != "full":
        raise RecipeError(
            f"spectra: is {recipe.spectra}; a sweep decomposes once and needs the whole spectra: set spectra: full"
        )
    if evaluator is not None:
        if objective.not_below_base and recipe.base_model is None:
            raise RecipeError("--not-below-base: the recipe has no base_model")
        return
    if not spectral:
        raise RecipeError(no_data_free_scores(method.name))
    if recipe.calibration is not None:
        raise RecipeError("calibration: scores without data are those of the delta before it; give an evaluator")
    if objective.not_below_base:
        raise RecipeError("--not-below-base: scores without data do not compare with the base; give an evaluator")


def _check_effects(prepared: PreparedSweep) -> None:
    """Refuse an axis whose values make no difference, because the recipe sets the parameter in a closer place."""
    first = next(corner_settings(prepared.axes))
    for axis in prepared.axes:
        if len(axis.ends) < 2:
            continue
        results = {_parts(prepared.plan_of({**first, axis.name: value})) for value in axis.ends}
        if len(results) == 1:
            places = [scope.place for scope in all_scopes(prepared.recipe) if axis.name in scope.settings]
            places = [place for place in places if place != "parameters"]
            reason = f"{places[0]}.{axis.name} sets it for all tensors" if places else "no tensor is merged with it"
            raise RecipeError(f"--grid {axis.name}: changes nothing, because {reason}; remove one of the two")


def _parts(plan: Plan) -> tuple[str, ...]:
    return tuple(shard.part_key for shard in plan.shards)


def _sweep_key(recipe: Recipe, plan: Plan, axes: Sequence[Axis], evaluator: Evaluator | None) -> str:
    """Return what names the table: the recipe without the swept parameters, its models, and the evaluator."""
    content = {**recipe.canonical()}
    swept = {axis.name for axis in axes}
    content["parameters"] = {name: value for name, value in (recipe.parameters or {}).items() if name not in swept}
    models = [
        plan.base.fingerprint if plan.base is not None else None,
        *(expert.fingerprint for expert in plan.experts),
    ]
    identity: object = evaluator.identity if evaluator is not None else None
    if identity is None:  # the corner of the L-curve depends on all candidates
        identity = {"without data": 1, "axes": [[axis.name, list(axis.values)] for axis in axes]}
    return hash_json(["sweep", content, models, identity])
