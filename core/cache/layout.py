"""Names of the objects in a store.

    spectra/<hh>/<hash>.arrow       one matrix' decomposition       (`planning.fingerprints.spectrum_key`)
    alignments/<hash>.json          largest eigenvalues of layers that are aligned with each other
    sums/<hh>/<hash>/<set>.safetensors   sums over one set of experts, for `keep_sums`
    parts/<hash>.safetensors        the merged tensors of one shard (`planning.fingerprints.part_key`)
    parts/<hash>.json               its record, written after it: the commit of the part
    parts/<hash>.arrow              values and statistics of its matrices
    runs/<run key>/<name>           what one run is, which objects it uses, the table of its spectra
    claims/<name>                   who works on what; may be deleted at any time
    probes/<name>                   left by a killed test of the store; may be deleted at any time

A hash names what the object was computed from: if it exists, that is done.
"""

from __future__ import annotations

from ..formats.object_names import check_key

# Where the command line and the flow keep objects unless told otherwise.
DEFAULT_STORE = "~/.cache/eigenmerge"

SPECTRA = "spectra/"
ALIGNMENTS = "alignments/"
PARTS = "parts/"
SUMS = "sums/"
RUNS = "runs/"
CLAIMS = "claims/"
PROBES = "probes/"


def run_object_key(run_key: str, name: str) -> str:
    return check_key(f"{RUNS}{run_key}/{name}")
