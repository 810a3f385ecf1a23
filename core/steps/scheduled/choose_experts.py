"""Plan a scheduled merge with the registered experts that can be merged, and say why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import BudgetError, InterruptedRunError, one_line
from ...planning.plan import Plan
from ...publishing.expert_registry import RegisteredExpert, RegistryScan
from ...publishing.scheduled_recipe import complete_recipe
from ...recipe.recipe import Recipe

MakePlan = Callable[[Recipe], Plan]

# No expert is at fault: with fewer experts the plan would fit, but it would be another merge than the one asked for.
_NOT_OF_EXPERTS = (BudgetError, InterruptedRunError)


@dataclass(frozen=True, slots=True)
class ChosenExperts:
    """The plan of the experts that can be merged.

    skipped : name of each other expert, to the reason
    """

    recipe: Recipe
    plan: Plan
    scan: RegistryScan
    skipped: Mapping[str, str]


def choose_experts(template: Mapping[str, Any], scan: RegistryScan, make_plan: MakePlan) -> ChosenExperts:
    """Return a plan of as many experts as can be planned together.

    Which expert is at fault is found by planning, not by the kind of the error: an expert is bad if the plan fails with
    it and succeeds without it. So every error that one expert can cause costs that expert only.

    Cost: one plan; if it fails, one per expert, and up to one more per expert if they only fail together.

    Raises
    ------
    EigenmergeError : the plan fails with any choice of experts: the error of the plan with all of them
    """
    trial = _Trial(template, scan, make_plan)
    first = trial.plan(scan.experts)
    if not isinstance(first, Exception):
        return ChosenExperts(*first, scan, {})
    if isinstance(first, _NOT_OF_EXPERTS):
        raise first
    alone = {expert.name: trial.plan([expert]) for expert in scan.experts}
    bad = {name: found for name, found in alone.items() if isinstance(found, Exception)}
    if len(bad) == len(scan.experts):  # the recipe or the base, or a method that needs several experts
        bad = _bad_without(trial, scan) if len(scan.experts) > 1 else {}
        if not bad:
            raise first
    kept = [expert for expert in scan.experts if expert.name not in bad]
    together = trial.plan(kept)
    if isinstance(together, Exception):
        kept = []
        for expert in scan.experts:
            if expert.name in bad:
                continue
            found = trial.plan([*kept, expert])
            if isinstance(found, _NOT_OF_EXPERTS):
                raise found
            if isinstance(found, Exception):
                bad[expert.name] = found
            else:
                kept.append(expert)
                together = found
        if isinstance(together, Exception):
            raise together
    reasons = {name: one_line(error) for name, error in bad.items()}
    return ChosenExperts(*together, scan.without(reasons), reasons)


def _bad_without(trial: _Trial, scan: RegistryScan) -> dict[str, Exception]:
    """Return the expert without which the others can be planned, where no expert can be planned alone."""
    for expert in scan.experts:
        rest = [other for other in scan.experts if other is not expert]
        if not isinstance(trial.plan(rest), Exception):
            found = trial.plan(scan.experts)
            return {expert.name: found} if isinstance(found, Exception) else {}
    return {}


@dataclass(frozen=True, slots=True)
class _Trial:
    template: Mapping[str, Any]
    scan: RegistryScan
    make_plan: MakePlan

    def plan(self, experts: Sequence[RegisteredExpert]) -> tuple[Recipe, Plan] | Exception:
        """Return recipe and plan, or why there is none."""
        names = {expert.name for expert in experts}
        others = {expert.name for expert in self.scan.experts} - names
        try:
            recipe = complete_recipe(self.template, self.scan.without(others))
            return recipe, self.make_plan(recipe)
        except Exception as error:  # hostile files may cause errors that the planner does not expect
            return error
