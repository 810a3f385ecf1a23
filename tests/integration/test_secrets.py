"""Credentials do not appear in files, stores, logs, messages, tracebacks or the database of Prefect."""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eigenmerge.core.errors import EigenmergeError
from eigenmerge.core.recipe.recipe import recipe_from_mapping

from ..conftest import ACCESS_KEY, SECRET_KEY
from .s3_models import Finished, ForkedCommands, S3Models, objects

SECRETS = (ACCESS_KEY.encode(), SECRET_KEY.encode())


def assert_clean(content: bytes | str, where: object) -> None:
    data = content.encode() if isinstance(content, str) else content
    for secret in SECRETS:
        position = data.find(secret)
        assert position < 0, f"{where}: ...{data[max(0, position - 200) : position + 60]!r}"


def assert_clean_folder(folder: Path) -> int:
    """Check every file below the folder and return their number."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert_clean(path.read_bytes(), path)
    return len(files)


@pytest.fixture
def prefect_home(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the database of the Prefect server."""
    (home,) = (path.parent for path in tmp_path_factory.getbasetemp().glob("prefect[0-9]*/prefect.db"))
    return home


def recorded_parameters(home: Path) -> list[str]:
    with sqlite3.connect(home / "prefect.db", timeout=60) as database:
        return [row[0] for row in database.execute("select parameters from flow_run")]


@pytest.fixture(autouse=True)
def check_log_records(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check what any library logs in this process, at any level."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    yield
    for record in caplog.get_records("call"):
        if not record.name.startswith(("botocore", "aiobotocore")):  # at DEBUG botocore logs the requests that it signs
            assert_clean(record.getMessage(), record.name)


def test_a_successful_merge(s3_models: S3Models, eigenmerge: Any, prefect_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    recipe = s3_models.write_recipe(keep_sums=True)
    env = {"HOME": str(home), "PREFECT_HOME": str(home), "EIGENMERGE_STORE": f"{s3_models.uri}/store"}
    finished = eigenmerge("merge", recipe, f"{s3_models.uri}/out", "--verbose", env=env)
    assert finished.returncode == 0, finished.stderr
    assert "Merged 3 experts" in finished.stdout and "Beginning flow run" in finished.stderr, finished.stderr
    assert_clean(finished.stdout + finished.stderr, "output")
    for name in ("out", "store"):
        found = objects(s3_models.store(name))
        assert len(found) >= 5
        for key, content in found.items():
            assert_clean(content, key)
    assert_clean_folder(home)
    assert any(s3_models.uri in parameters for parameters in recorded_parameters(prefect_home))
    assert assert_clean_folder(prefect_home) >= 1


@pytest.mark.parametrize("fault", ["denied", "no bucket", "nan", "damaged"])
def test_a_failed_merge(
    s3_models: S3Models, faulty_s3: Any, forked_commands: ForkedCommands, prefect_home: Path, fault: str
) -> None:
    proxy, _ = faulty_s3
    models, keys = s3_models.through(proxy.endpoint), {}
    if fault == "denied":
        proxy.faults.decide = lambda method, path: "denied" if "expert1" in path and method == "GET" else None
    if fault == "no bucket":
        keys = {"base_model": "s3://no-such-bucket-here/base"}
    if fault == "damaged":
        models.store("expert1").write("model.safetensors", b"\xff" * 20)
    if fault == "nan":
        content = bytearray(models.store("expert1").read("model.safetensors"))
        content[-4:] = b"\x00\x00\xc0\x7f"
        models.store("expert1").write("model.safetensors", bytes(content))
    recipe, out = models.write_recipe(**keys), f"{models.uri}/out"
    finished = forked_commands.run("merge", recipe, out, "--store", f"{models.uri}/store", "--verbose")
    assert finished.code not in (0, 70), finished.output
    assert_clean(finished.output, "output")
    assert_clean_folder(prefect_home)


def test_exceptions_and_tracebacks(s3_models: S3Models, faulty_s3: Any, merge_flow: Any) -> None:
    proxy, _ = faulty_s3
    proxy.faults.decide = lambda method, path: "denied" if "expert1" in path else None
    recipe = recipe_from_mapping(s3_models.through(proxy.endpoint).recipe())
    with pytest.raises(EigenmergeError) as caught:
        merge_flow(recipe, f"{s3_models.uri}/out", store=f"{s3_models.uri}/store")
    assert_clean("".join(traceback.format_exception(caught.value)), "traceback")
    link: BaseException | None = caught.value
    while link is not None:
        assert_clean(f"{link!r} {link.args!r}", type(link))
        link = link.__cause__ or link.__context__


@pytest.mark.parametrize("place", ["out", "--store", "base_model"])
def test_credentials_in_an_address_are_refused_and_not_recorded(
    s3_models: S3Models, forked_commands: ForkedCommands, prefect_home: Path, place: str
) -> None:
    secret = f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/prefix"
    recipe = s3_models.write_recipe(**({"base_model": secret} if place == "base_model" else {}))
    out = secret if place == "out" else f"{s3_models.uri}/out"
    store = secret if place == "--store" else f"{s3_models.uri}/store"
    finished: Finished = forked_commands.run("merge", recipe, out, "--store", store)
    assert finished.code == 2 and "contains credentials" in finished.output, finished.output
    assert len(finished.output.splitlines()) == 1
    assert_clean(finished.output, "output")
    assert_clean_folder(prefect_home)


@pytest.mark.parametrize("form", ["text", "mapping", "address in text", "destination", "store"])
def test_arguments_of_a_flow_may_not_contain_them(
    s3_models: S3Models, merge_flow: Any, prefect_home: Path, form: str
) -> None:
    """Prefect would record them with the parameters of the run."""
    text = s3_models.write_recipe().read_text()
    secret = f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/prefix"
    clean = text.replace(ACCESS_KEY, "").replace(SECRET_KEY, "")
    recipe: Any = {
        "mapping": yaml.safe_load(text),
        "text": text,
        "address in text": clean + f"tokenizer_source: {secret}",
    }.get(form, clean)
    out = secret if form == "destination" else f"{s3_models.uri}/out"
    store = secret if form == "store" else f"{s3_models.uri}/store"
    with pytest.raises(EigenmergeError, match="credentials"):
        merge_flow(recipe, out, store=store)
    assert_clean_folder(prefect_home)
