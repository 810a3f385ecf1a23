"""`eigenmerge nightly`: one scheduled merge of a registry, for cron and for retry loops."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import (
    DeviceOption,
    JsonOption,
    MaxMemoryOption,
    NoPrefectOption,
    QuietOption,
    RunnerOption,
    StoreOption,
    WorkersOption,
    check_addresses,
    parse_size,
)
from ..terminal import show, show_error, show_json
from .merge_command import stop_on_signals, summary, total_seconds

if TYPE_CHECKING:
    from ....core.cache.result import MergeResult
    from ....core.planning.plan import Plan
    from ....core.recipe.recipe import Recipe

#: Published, but experts were left out.
EXIT_SKIPPED = 3


def nightly(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Path or URI of a recipe without experts.", show_default=False)
    ],
    registry: Annotated[
        str, typer.Argument(metavar="REGISTRY", help="Prefix with one folder per expert.", show_default=False)
    ],
    publish: Annotated[
        str,
        typer.Argument(metavar="PUBLISH", help="Prefix for dated folders and latest.json.", show_default=False),
    ],
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    max_memory: MaxMemoryOption = None,
    workers: WorkersOption = None,
    runner: RunnerOption = None,
    runner_address: Annotated[
        str | None, typer.Option("--runner-address", metavar="URL", help="Dask scheduler or Ray head.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, metavar="N", help="Delete published merges but the newest N.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where an expert cannot be merged, instead of skipping it.")
    ] = False,
    no_prefect: NoPrefectOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Merge the experts of REGISTRY if anything changed, and publish the result. Exit code 3: experts were skipped."""
    from ....core.coordination.stop import StopSignal
    from ....core.steps.read_recipe import read_recipe_mapping
    from ....core.steps.scheduled.prepare_scheduled import prepare_scheduled
    from ....core.steps.scheduled.scheduled_merge import Schedule, scheduled_merge
    from ...reported_merge import reported_merge

    stop = StopSignal()
    stop_on_signals(stop)
    check_addresses(REGISTRY=registry, PUBLISH=publish, store=store)
    budget = parse_size(max_memory)

    def merge_one(recipe: Recipe, destination: str, plan: Plan) -> MergeResult:
        prepared, parameters, chosen_runner = prepare_scheduled(
            recipe,
            destination,
            plan,
            store=store,
            device=device,
            max_memory=budget,
            workers=workers,
            runner=runner,
            runner_address=runner_address,
        )
        begin = partial(stop_on_signals, stop)
        return reported_merge(
            prepared,
            parameters,
            runner=chosen_runner,
            stop=stop,
            on_begin=begin,
            use_prefect=not no_prefect,
            own_process=True,
        )

    def log(line: str) -> None:
        if not quiet:
            show_error(line)

    template = read_recipe_mapping(recipe)
    schedule = Schedule(template, registry, publish, device=device, max_memory=budget, keep=keep, strict=strict)
    result = scheduled_merge(schedule, merge_one, log)
    if as_json:
        show_json(result.to_dict(), indent=None)
    elif not quiet:
        show(*(summary(result.merged, total_seconds()) if result.merged else [f"Nothing to merge: {result.reason}"]))
        if result.destination:
            show(f"  published: {result.destination}")
        show(*(f"  {line}" for line in result.changes))
    return EXIT_SKIPPED if result.skipped else 0
