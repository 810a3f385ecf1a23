"""Methods of installed packages: which classes are collected, what makes one unavailable, when a plugin is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics import registry
from eigenmerge.core.numerics.method_checks import check_method
from eigenmerge.core.numerics.registry import (
    all_methods,
    built_in_methods,
    get_method,
    get_planned_method,
    unavailable_methods,
)
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

IMPORTS = """
import torch
from pydantic import Field
from eigenmerge.core.numerics.method import *
"""
DIRECT = """
class Halved(DirectMethod):
    name = "halved"
    summary = "half of the sum"
    source = "doi:1"
    Parameters = MethodParameters
    def merge(self, inputs, parameters, experts):
        return inputs.base + sum(inputs.task_vectors()) / 2
"""
SPECTRAL = """
class Flat(SpectralMethod):
    name = "flat"
    summary = "the sum with its singular values made equal"
    source = "doi:2"
    aliases = ("flattened",)
    Parameters = SpectralParameters
    def decomposition(self, parameters):
        return {"kind": "svd"}
    def decompose(self, task_vectors, parameters):
        total = sum(vector.dense() if isinstance(vector, LowRank) else vector for vector in task_vectors)
        left, values, right = torch.linalg.svd(total, full_matrices=False)
        blocks = {"left": left.T.contiguous()}
        return Spectrum("svd", task_vectors.shape, task_vectors.num_experts, values, right, blocks)
    def factors(self, spectrum, parameters):
        return Factors({"left": parameters.scale * spectrum.values.mean().expand_as(spectrum.values)}, 0)
"""

Install = Callable[..., str]


def forget_plugins() -> None:
    registry._plugins.cache_clear()
    registry._plugins_by_any_name.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package on the path as pip leaves it there; returns the name of its only module."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install_package(source: str, value: str = "{module}", package: str = "acme", version: str = "1.0") -> str:
        module = f"{package}_{abs(hash(str(tmp_path)))}"
        monkeypatch.delitem(sys.modules, module, raising=False)
        (site / f"{module}.py").write_text(IMPORTS + source)
        facts = site / f"{package}-{version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        entry_point = f"tools = {value.format(module=module)}"
        (facts / "entry_points.txt").write_text(f"[eigenmerge.methods]\n{entry_point}\n")
        forget_plugins()
        return module

    yield install_package
    forget_plugins()


def reasons() -> dict[str, str]:
    return {entry.names[0]: entry.reason for entry in unavailable_methods()}


def test_a_modules_methods_are_collected(install: Install) -> None:
    install(DIRECT + SPECTRAL)
    assert set(all_methods()) == {*built_in_methods(), "halved", "flat"}
    assert unavailable_methods() == ()
    assert get_method("flattened") is get_method("flat")
    assert get_method("flat").package == "acme 1.0"
    assert get_method("swudi").package is None
    check_method("halved")
    check_method("flat")
    vectors = [torch.ones(3, 4), torch.ones(3, 4)]
    assert torch.equal(merge_task_vectors(vectors, "halved"), torch.ones(3, 4))


def test_a_class_is_an_entry_point_too(install: Install) -> None:
    install(DIRECT + SPECTRAL, value="{module}:Flat")
    assert set(all_methods()) - set(built_in_methods()) == {"flat"}


def test_built_in_methods_import_no_plugin(install: Install) -> None:
    module = install("raise SystemExit('imported')")
    assert get_method("swudi").name == get_method("iwudi").name.removesuffix("_soft")
    assert get_planned_method("ties", None).name == "ties"
    assert module not in sys.modules
    with pytest.raises(SystemExit):
        get_method("unheard_of")


@pytest.mark.parametrize(
    ("source", "value", "name", "reason"),
    [
        (
            "import not_installed",
            "{module}",
            "tools",
            "entry point tools = {module} of package acme 1.0 cannot be imported: ModuleNotFoundError: No module named"
            " 'not_installed'",
        ),
        ("x = (", "{module}", "tools", "cannot be imported: SyntaxError: "),
        (DIRECT, "{module}:Doubled", "tools", "cannot be imported: AttributeError: "),
        ("", "{module}", "tools", "defines no merge method; expected a subclass of SpectralMethod or DirectMethod"),
        ("tool = {}", "{module}:tool", "tools", "is a dict; expected a module, or a subclass of SpectralMethod or"),
        (DIRECT.replace("def merge", "def merged"), "{module}", "halved", "is abstract: define merge"),
        (SPECTRAL.replace("def factors", "def f"), "{module}:Flat", "flat", "is abstract: define factors"),
        (DIRECT.replace("half of the sum", ""), "{module}", "halved", "summary is ''; expected a line of text"),
        (DIRECT.replace("    source", "    origin"), "{module}", "halved", "source is None; expected a line of text"),
        (DIRECT.replace("    name", "    title"), "{module}:Halved", "Halved", "name is None; expected a line of text"),
        (SPECTRAL.replace('("flattened",)', '"flattened"'), "{module}", "flat", "expected a tuple of names"),
        (
            SPECTRAL.replace("Parameters = SpectralParameters", "Parameters = MethodParameters"),
            "{module}",
            "flat",
            "expected a subclass of SpectralParameters",
        ),
        (
            "class Own(MethodParameters):\n    power: float = 1.0\n" + DIRECT.replace("= MethodParameters", "= Own"),
            "{module}",
            "halved",
            "parameter power has no description; add Field(..., description=...)",
        ),
        (SPECTRAL.replace('"kind"', '"sort"'), "{module}", "flat", 'expected a JSON-able mapping with "kind"'),
        (SPECTRAL.replace('"svd"}', "torch}"), "{module}", "flat", 'expected a JSON-able mapping with "kind"'),
        (DIRECT.replace('"halved"', '"ties"'), "{module}", "ties", "the name 'ties' belongs to a built-in method"),
        (SPECTRAL.replace('"flattened"', '"iwudi"'), "{module}", "flat", "the name 'iwudi' belongs to a built-in"),
        (
            DIRECT + "    def __init__(self):\n        raise OSError('no\\nfile')\n",
            "{module}",
            "halved",
            "fails: OSError: no file",
        ),
    ],
)
def test_what_is_wrong_is_one_line(install: Install, source: str, value: str, name: str, reason: str) -> None:
    module = install(source, value)
    assert reason.format(module=module) in reasons()[name]
    assert "\n" not in reasons()[name]
    assert len(all_methods()) == len(built_in_methods())
    if name not in built_in_methods():
        with pytest.raises(RecipeError, match=f"merge method '{name}' is unavailable: .*acme 1.0"):
            get_method(name)
    with pytest.raises(RecipeError, match=r"methods of acme 1\.0 are unavailable"):
        get_method("unheard_of")


def test_an_abstract_base_of_a_plugin_is_no_method(install: Install) -> None:
    family = DIRECT.replace("Halved(DirectMethod)", "Family(DirectMethod)").replace("    name = ", "    family = ")
    install(family.replace("def merge", "def merged") + DIRECT.replace("(DirectMethod)", "(Family)"))
    assert set(all_methods()) - set(built_in_methods()) == {"halved"}
    assert unavailable_methods() == ()


def test_two_packages_with_one_name_get_it_neither(install: Install) -> None:
    install(DIRECT + SPECTRAL)
    install(SPECTRAL.replace('"flattened"', '"halved"').replace('"flat"', '"level"'), package="other", version="2.0")
    assert set(all_methods()) - set(built_in_methods()) == {"flat"}
    assert "the name 'halved' belongs to a method of package other 2.0 too" in reasons()["halved"]
    assert "the name 'halved' belongs to a method of package acme 1.0 too" in reasons()["level"]


def test_a_worker_needs_the_version_of_the_plan(install: Install) -> None:
    with pytest.raises(RecipeError, match=r"'flat' is not available on this worker: install package acme 1\.0, as"):
        get_planned_method("flat", "acme 1.0")
    install(SPECTRAL)
    assert get_planned_method("flat", "acme 1.0") is get_method("flat")
    with pytest.raises(
        RecipeError, match=r"is of package acme 1\.0 on this worker and of package acme 0\.9 in the plan"
    ):
        get_planned_method("flat", "acme 0.9")
    with pytest.raises(RecipeError, match=r"is built in on this worker and of package acme 1\.0 in the plan"):
        get_planned_method("swudi", "acme 1.0")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (DIRECT.replace("return ", "return 1 + "), "zero task vectors give"),
        (DIRECT.replace("sum(inputs", "next(inputs"), "the order of the experts matters"),
        (DIRECT.replace("return ", "return torch.rand(()) * "), "a second run gives other values"),
        (DIRECT.replace("inputs.base +", "inputs.base.add_(1) +"), "it changes its inputs"),
        (DIRECT.replace("/ 2", "* float('nan')"), "the result has NaN or Inf"),
        (SPECTRAL.replace('{"kind": "svd"}', '{"kind": "svd", "s": parameters.scale}'), "is part of the decomposition"),
        (SPECTRAL.replace("values.mean()", "values.mean() * spectrum.right.norm()"), "`factors` reads the vectors"),
        (
            SPECTRAL.replace("values.mean()", "values.mean() * spectrum.left['left'].norm()"),
            "`factors` reads the vecto",
        ),
        (SPECTRAL.replace("parameters.scale *", "parameters.scale ** 2 *"), "`scale` is no factor"),
        (
            SPECTRAL.replace("vector.dense() if", "vector.dense() * 2 if"),
            "LoRA factors and their dense products differ",
        ),
    ],
)
def test_check_method_finds_what_is_wrong(install: Install, wrong: str, message: str) -> None:
    install(wrong)
    name = "halved" if "Halved" in wrong else "flat"
    with pytest.raises(AssertionError, match=message):
        check_method(name)
