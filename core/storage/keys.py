"""Names of the objects in a store.

    spectra/<hash>.arrow            one matrix' decomposition       (`planning.fingerprints.spectrum_key`)
    parts/<hash>.safetensors        the merged tensors of one shard (`planning.fingerprints.part_key`)
    operators/<hash>.safetensors    the sums C, D and S of one matrix, for `keep_operators`
    runs/<run key>/<name>           plan, progress and reports of one run
    claims/<name>                   who works on what; may be deleted at any time

A hash names what the object was computed from: if it exists, that is done.
"""

from __future__ import annotations

from .object_names import check_key

SPECTRA = "spectra/"
PARTS = "parts/"
OPERATORS = "operators/"
RUNS = "runs/"
CLAIMS = "claims/"


def operators_key(digest: str) -> str:
    return check_key(f"{OPERATORS}{digest}.safetensors")


def run_object_key(run_key: str, name: str) -> str:
    return check_key(f"{RUNS}{run_key}/{name}")


def claim_key(name: str) -> str:
    return check_key(f"{CLAIMS}{name}")
