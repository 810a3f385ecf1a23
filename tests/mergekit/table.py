"""Write the tables of docs/mergekit.md: every form of a mergekit recipe, and what Eigenmerge does with it.

python -m tests.mergekit.table          from the top of the repository; plans every form on tiny models
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from eigenmerge.core.errors import EigenmergeError, one_line
from eigenmerge.core.planning.plan import Plan
from eigenmerge.core.steps.plan_stages import plan_stages
from eigenmerge.core.steps.read_recipe import read_stages

from .forms import FORMS, Form
from .models import make_models

PAGE = Path(__file__).parents[2] / "docs" / "mergekit.md"
BEGIN = "<!-- forms: written by tests/mergekit/table.py -->\n"


def recipe_text(form: Form, models: Mapping[str, str]) -> str:
    """Return the recipe with the folders of the models."""
    text = form.text
    for name, folder in models.items():
        text = text.replace(f"{{{name}}}", folder)
    return text


def plan_form(form: Form, models: Mapping[str, str], destination: str = "OUT") -> list[Plan]:
    """Return the plans of a form's documents."""
    return [plan for _, plan in plan_stages(read_stages(recipe_text(form, models), destination))]


def outcome(form: Form, models: Mapping[str, str]) -> str:
    """Return "runs", with the warning that the form expects, or "refused" with the error."""
    try:
        plans = plan_form(form, models)
    except EigenmergeError as error:
        return "refused: " + _shorten(one_line(error), models)
    warnings = [warning for plan in plans for warning in plan.warnings]
    expected = form.warns is not None and any(form.warns in warning for warning in warnings)
    return f"runs, with a warning: {form.warns}" if expected else "runs"


def _shorten(text: str, models: Mapping[str, str]) -> str:
    for name, folder in sorted(models.items(), key=lambda item: -len(item[1])):
        text = text.replace(folder, name.upper())
    return text.removeprefix("recipe: ").replace("|", "\\|")


def make_tables(models: Mapping[str, str]) -> str:
    """Return the text of the page below `BEGIN`."""
    rows = [(form, outcome(form, models)) for form in FORMS]
    count = sum(result.startswith("runs") for _, result in rows)
    lines = [f"Of {len(rows)} forms {count} run and {len(rows) - count} are refused with a reason.", ""]
    for topic in dict.fromkeys(form.topic for form in FORMS):
        lines += [f"### {topic.capitalize()}", "", "| form | result |", "|---|---|"]
        lines += [f"| {form.name} | {result} |" for form, result in rows if form.topic == topic]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = make_tables(make_models(Path(folder)))
    PAGE.write_text(PAGE.read_text().partition(BEGIN)[0] + BEGIN + "\n" + text)


if __name__ == "__main__":
    sys.exit(main())
