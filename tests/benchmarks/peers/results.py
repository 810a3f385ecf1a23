"""What was measured: rows of figures, and the JSON file that keeps all runs of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: What one run took, by name: cpu and wall in seconds, memory, weights and spectra in bytes, rates per second.
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """All runs of one case.

    group : merges, layers, kept, reading or planning
    label : names the case in its group
    date : of the measurement, YYYY-MM-DD
    runs : by contender, such as eigenmerge and mergekit, in the order of the turns
    """

    group: str
    label: str
    date: str
    runs: dict[str, list[Figures]] = field(default_factory=dict[str, list[Figures]])

    def values(self, contender: str, figure: str) -> list[float]:
        """Return the figure of every run that has it."""
        return [run[figure] for run in self.runs.get(contender, []) if figure in run]

    def median(self, contender: str, figure: str) -> float | None:
        """Return None where no run has the figure."""
        values = self.values(contender, figure)
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class Results:
    """The rows of one machine.

    versions : of the programs that were compared
    """

    machine: str
    versions: Mapping[str, str]
    rows: Sequence[Row]

    def with_row(self, row: Row) -> Results:
        """Return the results with a row added, or in the place of the one with its group and label."""
        rows = {(one.group, one.label): one for one in self.rows}
        rows[row.group, row.label] = row
        return Results(self.machine, self.versions, list(rows.values()))


def read_results(file: Path) -> Results:
    """Return what `write_results` wrote.

    Raises
    ------
    SystemExit : there is no such file, or it has something else; in one line
    """
    try:
        content = json.loads(file.read_text())
        return Results(content["machine"], content["versions"], [Row(**one) for one in content["rows"]])
    except FileNotFoundError:
        raise SystemExit(f"{file}: no such file; measure with --json {file}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"{file}: not results of this benchmark ({error})") from None


def write_results(file: Path, results: Results) -> None:
    """Write one run per line, so that a new measurement is a readable difference."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [_row_text(row) for row in results.rows]
    head = json.dumps({"machine": results.machine, "versions": dict(results.versions)}, indent=1)[:-2]
    file.write_text(head + ',\n "rows": [\n' + ",\n".join(rows) + "\n ]\n}\n")


def _row_text(row: Row) -> str:
    facts = json.dumps({key: value for key, value in asdict(row).items() if key != "runs"})[:-1]
    contenders = [
        f"    {json.dumps(name)}: [\n" + ",\n".join(f"     {_run_text(run)}" for run in runs) + "\n    ]"
        for name, runs in row.runs.items()
    ]
    return f'  {facts}, "runs": {{\n' + ",\n".join(contenders) + "\n  }}"


def _run_text(run: Figures) -> str:
    return json.dumps({name: round(value, 4) if value < 1e4 else round(value) for name, value in run.items()})
