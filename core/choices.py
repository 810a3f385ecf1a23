"""The fixed sets of words that recipes and command-line options accept, importable without heavy packages."""

from __future__ import annotations

from typing import Literal

# Where shards are computed.
RunnerName = Literal["threads", "dask", "ray"]

# How `eigenmerge cache du` groups the objects of a store.
Grouping = Literal["kind", "run", "method", "model"]

# How a sweep chooses its candidates; the samplers and pruners are Optuna's.
OptimizerName = Literal["grid", "optuna"]
SamplerName = Literal["tpe", "random", "gp", "cmaes"]
PrunerName = Literal["none", "median", "hyperband"]
