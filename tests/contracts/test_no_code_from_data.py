"""No module of the package imports or calls anything that executes code from data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("core", "tasks", "flows", "deployments") for path in (ROOT / folder).rglob("*.py"))

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "shelve",
    "marshal",
    "joblib",
    "jsonpickle",
    "code",
    "runpy",
}
# numpy.load, torch.load and pyarrow.deserialize read pickles; yaml.load creates arbitrary objects.
CALLS = {
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "pyarrow.deserialize", "pa.deserialize", "os.system", "os.popen", "eval", "exec", "compile",
    "__import__",
}  # fmt: skip
NAMES = {"trust_remote_code", "allow_pickle", "UnsafeLoader", "FullLoader"}


# `eigenmerge verify --trust-remote-code`: the only option that executes code of a model.
ALLOWED = {"core/steps/loading/model_class.py": ["passes trust_remote_code"] * 3}


def violations(source: str) -> Iterator[str]:
    """Yield a description of every forbidden import, call, argument and name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"imports {name.name}" for name in node.names if name.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if (node.module or "").partition(".")[0] in MODULES:
                yield f"imports {node.module}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                yield f"calls {called}"
            yield from (f"passes {word.arg}" for word in node.keywords if word.arg in NAMES)
            yield from ("starts a shell" for word in node.keywords if word.arg == "shell")
        elif isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in NAMES:
                yield f"names {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_executes_data(path: Path) -> None:
    assert list(violations(path.read_text())) == ALLOWED.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from cloudpickle import loads", "import torch\ntorch.load('x', weights_only=True)",
        "yaml.load(x, Loader=yaml.SafeLoader)", "load(x, trust_remote_code=False)", "eval('1')",
        "subprocess.run('x', shell=True)", "loader = yaml.UnsafeLoader", "np.load('x', allow_pickle=True)",
    ],
)  # fmt: skip
def test_violations_are_found(source: str) -> None:
    assert list(violations(source))
