"""Several runs at once with one store: no errors, the same bytes, and each decomposition is computed about once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .s3_models import ForkedCommands, S3Models, objects, upload

TEN_TIMES = pytest.param(10, marks=pytest.mark.soak, id="ten times")


@pytest.fixture
def on_s3(make_models: Any, s3_root: Any) -> S3Models:
    return upload(make_models(num_experts=3, layers=2, hidden=64), s3_root.uri, s3_root.storage_options)


def keys_of(log: Path) -> list[str]:
    return [line.split()[1] for line in log.read_text().splitlines()]


@pytest.mark.parametrize("times", [1, TEN_TIMES])
def test_two_runs_of_one_recipe_share_the_work(
    on_s3: S3Models, forked_commands: ForkedCommands, pipeline: Any, tmp_path: Path, times: int
) -> None:
    recipe = on_s3.write_recipe("swudi_a", output={"max_shard_size": "100KB"})
    reference = pipeline(recipe, f"{on_s3.uri}/reference", f"{on_s3.uri}/alone")
    expected = objects(on_s3.store("reference"))
    shared = time = 0
    # Repeated if one of the two started too late to compute anything.
    while time < times or (not shared and time < 20):
        log, store = tmp_path / f"log{time}", f"{on_s3.uri}/store{time}"
        runs = [
            forked_commands.start("merge", recipe, f"{on_s3.uri}/out{time}-{name}", "--store", store, "--json", log=log)
            for name in "ab"
        ]
        finished = [run.wait() for run in runs]
        assert [run.code for run in finished] == [0, 0], [run.output for run in finished]
        assert objects(on_s3.store(f"out{time}-a")) == objects(on_s3.store(f"out{time}-b")) == expected
        decomposed = Counter(keys_of(log))
        assert len(decomposed) == reference.decompositions_computed
        assert max(decomposed.values()) == 1, "a claimed shard is computed by one run"
        shared += all(run.json["decompositions_computed"] > 0 for run in finished)
        assert not [key for key in objects(on_s3.store(f"store{time}")) if key.startswith("claims/")]
        time += 1
    assert shared, "at least once both computed something"


@pytest.mark.parametrize("times", [1, TEN_TIMES])
def test_two_recipes_that_share_spectra(
    on_s3: S3Models, forked_commands: ForkedCommands, pipeline: Any, tmp_path: Path, times: int
) -> None:
    recipes = [
        on_s3.write_recipe("swudi", name="swudi.yml", parameters={"exp_time": 300}),
        on_s3.write_recipe("wudi_pinv", name="pinv.yml"),
    ]
    expected, num_decompositions = [], 0
    for number, recipe in enumerate(recipes):
        out = f"{on_s3.uri}/reference{number}"
        num_decompositions += pipeline(recipe, out, f"{on_s3.uri}/alone").decompositions_computed
        expected.append(objects(on_s3.store(f"reference{number}")))
    for time in range(times):
        log, store = tmp_path / f"log{time}", f"{on_s3.uri}/store{time}"
        runs = [
            forked_commands.start("merge", recipe, f"{on_s3.uri}/out{time}-{n}", "--store", store, "--json", log=log)
            for n, recipe in enumerate(recipes)
        ]
        finished = [run.wait() for run in runs]
        assert [run.code for run in finished] == [0, 0], [run.output for run in finished]
        assert [objects(on_s3.store(f"out{time}-{number}")) for number in range(2)] == expected
        assert set(keys_of(log)) and len(set(keys_of(log))) == num_decompositions


@pytest.mark.parametrize("times", [1, TEN_TIMES])
def test_two_runs_with_one_destination(
    on_s3: S3Models, forked_commands: ForkedCommands, pipeline: Any, tmp_path: Path, times: int
) -> None:
    recipe = on_s3.write_recipe("swudi_a", output={"max_shard_size": "100KB"})
    pipeline(recipe, f"{on_s3.uri}/reference", f"{on_s3.uri}/store")
    other = on_s3.write_recipe("average", name="other.yml", output={"max_shard_size": "70KB"})
    pipeline(other, f"{on_s3.uri}/reference-other", f"{on_s3.uri}/store")
    expected, expected_other = objects(on_s3.store("reference")), objects(on_s3.store("reference-other"))
    # The parts exist already, so both runs write the destination at the same time.
    for time in range(times):
        out = f"{on_s3.uri}/out{time}"
        runs = [forked_commands.start("merge", recipe, out, "--store", f"{on_s3.uri}/store") for _ in range(2)]
        finished = [run.wait() for run in runs]
        refused = [run for run in finished if run.code]
        assert len(refused) <= 1 and all("already contains the result" in run.output for run in refused), finished
        assert objects(on_s3.store(f"out{time}")) == expected

        out = f"{on_s3.uri}/mixed{time}"
        runs = [forked_commands.start("merge", one, out, "--store", f"{on_s3.uri}/store") for one in (recipe, other)]
        finished = [run.wait() for run in runs]
        assert sorted(run.code for run in finished) == [0, 1], [run.output for run in finished]
        refused = next(run for run in finished if run.code)
        errors = [line for line in refused.output.splitlines() if " error: " in line]  # a busy machine adds progress
        assert len(errors) == 1 and out in errors[0] and "Traceback" not in refused.output
        assert objects(on_s3.store(f"mixed{time}")) == (expected if finished[0].code == 0 else expected_other)
