"""Code in README.md and docs/: commands are valid and run, recipes are valid, Python code runs.

A block with a title is a file of its page, and the commands of a page are run in a folder with these files.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from safetensors.torch import save_file

from eigenmerge.core.planning.cost.machines import MACHINES
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.recipe.strict_yaml import parse_yaml_documents

from ..conftest import S3Root
from ..small_models import add_tokenizer, base_weights, expert_weights, llama_config, save_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
# tests/integration/test_own_method.py builds the package of docs/own-method.md.
TESTED_ELSEWHERE = {"docs/own-method.md"}
FENCED = re.compile(r'^```(\w*)(?: title="([\w.]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
RUN_KEY = "3f9a0c12"  # of the merges that the pages show
IN_MAKE_TEST = {"docs/guides/first-merge.md", "docs/guides/nightly.md"}  # the others: `make slow`


@dataclass(frozen=True)
class Block:
    """One fenced block, or one command of an indented block."""

    page: str
    line: int
    language: str
    text: str
    title: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    for path in PAGES:
        page, text = str(path.relative_to(ROOT)), path.read_text()
        if page in TESTED_ELSEWHERE:
            continue
        for found in FENCED.finditer(text):
            yield Block(page, text[: found.start()].count("\n") + 1, found[1], found[3], found[2] or "")
        plain = FENCED.sub(lambda found: "\n" * found[0].count("\n"), text).replace("\\\n", " ")
        for number, line in enumerate(plain.splitlines(), 1):
            if re.match(r" {4}(eigenmerge|python -m eigenmerge|make) ", line):
                yield Block(page, number, "command", line.strip())


ALL = list(blocks())
COMMANDS = [block for block in ALL if block.language == "command" and not block.text.startswith("make ")]
RECIPES = [block for block in ALL if block.language == "yaml"]
PYTHON = [block for block in ALL if block.language == "python"]
ON_THIS_MACHINE = [  # tests/core/steps/hub pushes to a server of its own
    block
    for block in COMMANDS
    if block.page in ("README.md", "docs/store.md") and not block.text.startswith("eigenmerge push ")
]


def needs_more(block: Block) -> bool:
    """Return whether a command needs a GPU, a shared disk or the Hub, which tests of their own have."""
    return any(word in block.text for word in ("--device cuda", "$SHARED", "eigenmerge push", "--push"))


def without_cluster(arguments: list[str]) -> list[str]:
    """Return the arguments without the address of a cluster: tests of Dask and Ray start clusters of their own."""
    if "--runner-address" not in arguments:
        return arguments
    named = {arguments.index(option) for option in ("--runner", "--runner-address")}
    return [word for number, word in enumerate(arguments) if not named & {number, number - 1}]


FOLLOWED = sorted({block.page for block in COMMANDS if not needs_more(block)} - {b.page for b in ON_THIS_MACHINE})


def arguments_of(block: Block) -> list[str]:
    words = shlex.split(re.sub(r"\$\(.*\)", "COMMAND", block.text), comments=True)
    return words[3:] if words[0] == "python" else words[1:]


def with_run_key(arguments: list[str]) -> list[str]:
    """Return the arguments with the key of the merge in the folder "merged" where a page has the key of its example."""
    if RUN_KEY not in arguments:
        return arguments
    run_key = json.loads(Path("merged/eigenmerge_manifest.json").read_text())["run_key"]
    return [run_key[: len(RUN_KEY)] if word == RUN_KEY else word for word in arguments]


def test_code_is_found_in_the_pages() -> None:
    assert len(COMMANDS) > 20 and len(RECIPES) > 5 and PYTHON and len(ON_THIS_MACHINE) > 8


def test_every_block_names_its_language() -> None:
    assert [str(block) for block in ALL if not block.language] == []


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_are_valid(block: Block) -> None:
    """The parser of the command accepts every argument and option; nothing is run."""
    from eigenmerge.deployments.cli.app import app

    command: Any = typer.main.get_command(app)
    arguments = arguments_of(block)
    parent = None
    while hasattr(command, "commands"):
        name = arguments.pop(0)
        parent = command.make_context(name, [name, *arguments], parent=parent, resilient_parsing=True)
        command = command.commands[name]
    command.make_context(command.name, arguments, parent=parent)


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "command" and b.text.startswith("make ")], ids=str)
def test_make_targets_exist(block: Block) -> None:
    target = shlex.split(block.text, comments=True)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_recipes_are_valid(block: Block) -> None:
    """A page may show only some keys of a recipe; this test adds the required ones."""
    for shown in parse_yaml_documents(block.text, str(block)):
        rest: dict[str, Any] = {"merge_method": "swudi"}
        models = [{"model": "/models/a"}, {"model": "/models/b"}]
        if "slices" not in shown:
            rest |= {"base_model": "/models/base", "models": models}
        is_soup = isinstance(shown.get("models"), dict)  # a pattern, which is expanded where the files are
        recipe_from_mapping(rest | shown | ({"models": models} if is_soup else {}))


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_root: S3Root) -> Path:
    """A folder with the models and the recipe of the README, and a bucket on S3."""
    import fsspec

    base = base_weights(layers=1)
    add_tokenizer(save_model(tmp_path / "models/base", base, llama_config(layers=1)))
    for seed, name in enumerate(("math", "code")):
        add_tokenizer(save_model(tmp_path / "models" / name, expert_weights(base, seed), llama_config(layers=1)))
    adapter = tmp_path / "adapters/law"
    adapter.mkdir(parents=True)
    generator = torch.Generator().manual_seed(7)
    factors: dict[str, torch.Tensor] = {}
    for name, weight in base.items():
        if name.endswith("q_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{module}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator)
            factors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 2, generator=generator)
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    (recipe,) = [block.text for block in RECIPES if block.page == "README.md"]
    (tmp_path / "recipe.yml").write_text(recipe.replace("/models/", f"{tmp_path}/models/"))
    options = s3_root.storage_options
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(options["key"]))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(options["secret"]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(options["endpoint_url"]))
    fs = fsspec.filesystem("s3", endpoint_url=options["endpoint_url"], key=options["key"], secret=options["secret"])
    if not fs.exists("bucket"):
        fs.call_s3("create_bucket", Bucket="bucket")
    return tmp_path


@pytest.fixture
def page_folder(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder with what pages expect besides: a registry here and on S3, a recipe on S3, a machine file."""
    import fsspec

    for name in ("math", "code"):
        shutil.copytree(work_folder / "models" / name, work_folder / "experts" / name)
    fs = fsspec.filesystem("s3")
    nightly = f"merge_method: swudi_a\nbase_model: {work_folder}/models/base\n"
    fs.pipe("bucket/nightly.yml", nightly.encode())
    for name in ("math", "my-new-expert"):
        fs.put(f"{work_folder}/models/math/", f"bucket/experts/{name}/", recursive=True)
    (work_folder / "machine.json").write_text(MACHINES["h100-80gb"].model_dump_json())
    (work_folder / "config.json").write_text(json.dumps(llama_config(layers=1)))
    monkeypatch.setenv("HOME", str(work_folder))
    monkeypatch.syspath_prepend(work_folder)
    return work_folder


@pytest.fixture
def without_deployments(prefect_server: str) -> Iterator[None]:
    """Delete what a page deploys: the server is that of all tests of the session."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    yield
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page in IN_MAKE_TEST else pytest.mark.slow) for page in FOLLOWED]
)
@pytest.mark.usefixtures("without_deployments")
def test_a_page_can_be_followed(page: str, page_folder: Path, command: Callable[..., Any]) -> None:
    """The commands of a page, in their order, in a folder with its files and small models."""
    here = [block for block in ALL if block.page == page]
    if any("--output recipe.yml" in block.text for block in here):  # `init` writes it
        (page_folder / "recipe.yml").unlink()
    for block in here:
        if block.title:
            (page_folder / block.title).write_text(block.text)
    if "--grid exp_time" in "".join(block.text for block in here):
        text = (page_folder / "recipe.yml").read_text()
        (page_folder / "recipe.yml").write_text(text.replace("swudi_a", "swudi"))
    for block in here:
        if block in COMMANDS and not needs_more(block):
            done = command(*with_run_key(without_cluster(arguments_of(block))))
            assert done.code == 0, (str(block), block.text, done.err, done.out)


@pytest.mark.parametrize("page", sorted({block.page for block in COMMANDS}))
def test_every_command_is_run(page: str) -> None:
    assert page in {*FOLLOWED, *(block.page for block in ON_THIS_MACHINE)} or all(
        needs_more(block) for block in COMMANDS if block.page == page
    )


def test_commands_run_in_the_order_of_the_pages(work_folder: Path, command: Callable[..., Any]) -> None:
    """Commands of the README, then those of docs/store.md on the same store."""
    for block in ON_THIS_MACHINE:
        arguments = with_run_key(arguments_of(block))
        if "out" in arguments:
            arguments[arguments.index("out")] = "merged"
        done = command(*arguments)
        assert done.code == 0, (str(block), block.text, done.err, done.out)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, work_folder: Path, merge_flow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENMERGE_STORE", str(work_folder / "store"))
    monkeypatch.setenv("HOME", str(work_folder / "home"))
    vectors = {f"v{number}": torch.randn(6, 8) for number in (1, 2, 3)}
    names: dict[str, Any] = {**vectors, "models": [], "__name__": "page"}
    exec(compile(block.text, str(block), "exec"), names)  # noqa: S102
    if "delta" in names:
        assert names["delta"].shape == (6, 8)
    if "result" in names:
        assert (work_folder / "merged/model.safetensors").exists()
