"""`eigenmerge sweep`: search the parameters of a method, each layer decomposed once."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....core.choices import OptimizerName, PrunerName, SamplerName
from ..options import (
    AllowNonfiniteOption,
    DeviceOption,
    JsonOption,
    MaxMemoryOption,
    NoPrefectOption,
    QuietOption,
    RecipeArgument,
    StoreOption,
    WorkersOption,
    check_addresses,
    parse_size,
    show_count,
)
from ..status import set_status
from ..table import table_lines
from ..terminal import show, show_json
from .merge_command import stop_on_signals, summary, total_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ....core.sweep.evaluators.evaluator import Evaluator
    from ....core.sweep.run_sweep import SweepOutcome
    from ...python_sweep import SweepResult

#: Scored, but no candidate keeps all limits.
EXIT_NONE_ACCEPTED = 3

_SHOWN_ROWS = 10
_WIDTH = 80  # metrics that do not fit are in the table of the store only


def sweep(
    recipe: RecipeArgument,
    grid: Annotated[
        list[str],
        typer.Option(
            "--grid",
            metavar="NAME=VALUES",
            help="A parameter and its values: exp_time=100,300 or rank_ratio=0.5:0.95:0.05; with --optimizer also an"
            " interval, exp_time=10..3000:log. Once for each parameter.",
            show_default=False,
        ),
    ],
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="MODULE:FUNCTION",
            help="Python function of a candidate (a mapping of tensors) that returns a number, or numbers by name.",
        ),
    ] = None,
    evaluate_command: Annotated[
        str | None,
        typer.Option(
            "--evaluate-command",
            metavar="COMMAND",
            help="Command that prints the score last: 'python score.py {checkpoint}'.",
        ),
    ] = None,
    accuracy: Annotated[
        str | None,
        typer.Option("--accuracy", metavar="FILE", help="Accuracy on texts and labels: .csv, .tsv or .jsonl."),
    ] = None,
    perplexity: Annotated[
        str | None, typer.Option("--perplexity", metavar="FILE", help="Perplexity on a text file; lower is better.")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option("--lm-eval", metavar="TASKS", help="Tasks of lm-evaluation-harness, with a comma between two."),
    ] = None,
    rank_by: Annotated[
        str | None, typer.Option("--rank-by", metavar="METRIC", help="Metric to rank by. Default: the first.")
    ] = None,
    lower_is_better: Annotated[
        list[str] | None,
        typer.Option("--lower-is-better", metavar="METRIC", help="A metric whose smaller values are better."),
    ] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option(
            "--minimum",
            metavar="METRIC=VALUE",
            help="Worst value of a metric that is accepted (the largest, where lower is better).",
        ),
    ] = None,
    not_below_base: Annotated[
        bool,
        typer.Option("--not-below-base", help="Accept no candidate that is worse than the base in any metric."),
    ] = False,
    optimizer: Annotated[
        OptimizerName, typer.Option("--optimizer", help="Search the whole grid, or let Optuna propose candidates.")
    ] = "grid",
    sampler: Annotated[SamplerName, typer.Option("--sampler", help="Sampler of Optuna.")] = "tpe",
    pruner: Annotated[
        PrunerName, typer.Option("--pruner", help="Pruner of Optuna, which ends candidates early.")
    ] = "none",
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, metavar="N", help="Candidates of --optimizer optuna. Default: 30.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampler.")] = 0,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, metavar="N", help="Candidates to evaluate at the same time.")
    ] = 1,
    output: Annotated[
        str | None, typer.Option("--output", metavar="OUT", help="Merge the best candidate into this directory or URI.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint in OUT.")] = False,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Write a PNG of the scores over each parameter.")
    ] = None,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    max_memory: MaxMemoryOption = None,
    workers: WorkersOption = None,
    allow_nonfinite: AllowNonfiniteOption = False,
    scratch: Annotated[
        str | None,
        typer.Option("--scratch", metavar="DIR", help="Where to make the directories that evaluators ask for."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Score candidates again that the table has.")] = False,
    no_prefect: NoPrefectOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Score the parameters of a grid for RECIPE, and find the best. If it is stopped, the same command resumes it.

    Without an evaluator, candidates are scored from their spectra alone. Exit code 3: no candidate keeps all limits.
    """
    set_status("reading the recipe and the headers of the models")
    from ....core.coordination.stop import StopSignal
    from ....core.errors import DestinationError, RecipeError
    from ....core.steps.read_recipe import read_recipe
    from ....core.sweep.grid import parse_grid
    from ....core.sweep.objective import Objective, parse_limits
    from ....core.sweep.plot_response import check_can_plot
    from ....core.sweep.prepare_sweep import Search, prepare_sweep

    stop = StopSignal()
    stop_on_signals(stop)
    check_addresses(OUT=output, store=store)
    if plot is not None:
        check_can_plot()
        if not Path(plot).parent.is_dir() or Path(plot).is_dir():
            raise DestinationError(f"--plot {plot}: expected a file in a folder that exists")
    if scratch is not None and not Path(scratch).is_dir():
        raise DestinationError(f"--scratch {scratch}: is no folder")
    if overwrite and output is None:
        raise RecipeError("--overwrite: there is no --output")
    objective = Objective(
        rank_by, frozenset(lower_is_better or ()), parse_limits(minimum or ()), not_below_base=not_below_base
    )
    values, budget = parse_grid(grid), parse_size(max_memory)
    read = read_recipe(recipe)
    prepared = prepare_sweep(
        read,
        values,
        _evaluator(evaluate, evaluate_command, accuracy, perplexity, lm_eval),
        objective=objective,
        search=Search(optimizer, sampler, pruner, trials, seed, parallel),
        store=store,
        device=device,
        max_memory=budget,
        workers=workers,
        allow_nonfinite=allow_nonfinite,
    )
    if output is not None:
        prepared.check_destination(output, overwrite=overwrite)
    stop.check()
    set_status("importing torch" if no_prefect else "starting Prefect")

    from ...python_sweep import reported_sweep
    from ..sweep_progress import make_sweep_listener

    listener = make_sweep_listener(rank_by, quiet=quiet or as_json, terminal=sys.stderr.isatty())
    try:
        result = reported_sweep(
            prepared,
            fresh=fresh,
            scratch=scratch,
            listeners=(listener,),
            stop=stop,
            on_begin=partial(stop_on_signals, stop),
            use_prefect=not no_prefect,
            own_process=True,
        )
    finally:
        listener.close()
    if plot is not None:
        Path(plot).write_bytes(result.plot())
    merged = None
    if output is not None and result.recipe is not None:
        stop.check()
        set_status("merging the best candidate")
        merged = result.merge(
            output,
            max_memory=budget,
            workers=workers,
            overwrite=overwrite,
            use_prefect=not no_prefect,
            progress=sys.stderr.isatty() and not (quiet or as_json),
        )
    if as_json:
        show_json({**result.to_dict(), "merged": merged.to_dict() if merged is not None else None}, indent=None)
    elif not quiet:
        show(*_lines(result))
        if plot is not None:
            show(f"  plot: {plot}")
        if merged is not None:
            show(*summary(merged, total_seconds()))
    return 0 if result.best is not None else EXIT_NONE_ACCEPTED


def _evaluator(
    function: str | None, command: str | None, accuracy: str | None, perplexity: str | None, lm_eval: str | None
) -> Evaluator | None:
    """Return the evaluator of the options; None where none is given."""
    from ....core.sweep.evaluators.accuracy import accuracy_evaluator
    from ....core.sweep.evaluators.command import command_evaluator
    from ....core.sweep.evaluators.evaluator import combine
    from ....core.sweep.evaluators.language_harness import lm_eval_evaluator
    from ....core.sweep.evaluators.load_function import load_function
    from ....core.sweep.evaluators.perplexity import perplexity_evaluator

    found: list[Evaluator] = []
    if function is not None:
        found.append(load_function(function))
    if command is not None:
        found.append(command_evaluator(command))
    if accuracy is not None:
        found.append(accuracy_evaluator(accuracy))
    if perplexity is not None:
        found.append(perplexity_evaluator(perplexity))
    if lm_eval is not None:
        found.append(lm_eval_evaluator([task.strip() for task in lm_eval.split(",")]))
    return combine(found) if found else None


def _lines(result: SweepResult) -> list[str]:
    from ....core.sweep.grid import describe
    from ....core.sweep.plot_response import response_text

    outcome = result.outcome
    rows, best, metric = outcome.rows, outcome.best, outcome.metric
    lines = [f"warning: {warning}" for warning in outcome.warnings]
    order = "lowest" if outcome.lower_is_better else "highest"
    lines.append(f"{show_count(len(rows), 'candidate')}, {outcome.num_scored} scored now; by {order} {metric}:")
    metrics = [metric, *(name for name in dict.fromkeys(n for row in rows for n in row.metrics) if name != metric)]
    table = _table(outcome, metrics)
    while len(metrics) > 1 and max(map(len, table)) > _WIDTH:
        metrics.pop()
        table = _table(outcome, metrics)
    lines += table
    if len(rows) > _SHOWN_ROWS:
        lines.append(f"  and {len(rows) - _SHOWN_ROWS} more")
    lines += [f"  {line}".rstrip() for line in response_text(rows, metric, outcome.lower_is_better)]
    lines.append("")
    if outcome.base is not None:
        lines.append(f"Base: {', '.join(f'{name} {_cell(value)}' for name, value in outcome.base.metrics.items())}")
    if best is None:
        lines.append(f"Best: none, because no candidate keeps all limits: {', '.join(outcome.limits)}")
    else:
        lines.append(f"Best (*): {describe(best.settings)}: {metric} {_cell(best.metrics[metric])}")
        lines.append(f"  recipe: {result.recipe_place}")
    return [*lines, f"  table: {result.table_place}"]


def _table(outcome: SweepOutcome, metrics: Sequence[str]) -> list[str]:
    """Return the best rows with these metrics, one line each."""
    names = list(dict.fromkeys(name for row in outcome.rows for name in row.settings))
    cells = [
        [
            "*" if outcome.best is not None and row.candidate == outcome.best.candidate else "",
            *(_cell(row.settings.get(name)) for name in names),
            *(_cell(row.metrics.get(name)) for name in metrics),
            row.status,
        ]
        for row in outcome.ranked()[:_SHOWN_ROWS]
    ]
    return [f"  {line.rstrip()}" for line in table_lines(["", *names, *metrics, "status"], cells)]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
