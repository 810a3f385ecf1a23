"""Prefect flows: order only, a flow file reads like a table of contents.

`merge` is imported here, not lazily: once this package is imported the name is the flow, never the submodule.
"""

from ..tasks.prefect_settings import quiet_prefect

quiet_prefect()

from .merge import merge  # noqa: E402  (after the quiet defaults: Prefect reads them when it is imported)

__all__ = ["merge"]
