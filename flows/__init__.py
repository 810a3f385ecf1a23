"""Prefect flows: order only, a flow file reads like a table of contents.

`merge` is imported here, not lazily: once this package is imported the name is the flow, never the submodule.
"""

from .merge import merge

__all__ = ["merge"]
