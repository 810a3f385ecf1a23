"""Eigenmerge: merge many fine-tuned experts of one base model into a single checkpoint by spectral filtering.

    import eigenmerge

    plan = eigenmerge.plan("recipe.yml")                  # large models are not read
    result = eigenmerge.merge("recipe.yml", "merged")     # with Prefect, if it is there
    check = eigenmerge.verify("merged")
    eigenmerge.push("merged", "owner/name")               # to the Hugging Face Hub
    delta = eigenmerge.merge_task_vectors([v1, v2, v3], method="swudi_a")

`dir(eigenmerge)` lists all public names. Each is imported at its first use, so `import eigenmerge` loads neither torch
nor Prefect. The stub `__init__.pyi` beside this file is the list of these names, and gives their types.
"""

from __future__ import annotations

import lazy_loader

_load, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("eigenmerge")
    return _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)
