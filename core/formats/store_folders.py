"""The folders of a store, and where a store is by default.

    eigenmerge-store.json           says that the place is a store (`core/cache/store_marker.py`)
    spectra/<hh>/<hash>.arrow       the decomposition of one matrix
    alignments/<hash>.json          the largest eigenvalue of each layer that is aligned with others
    sums/<hh>/<hash>/<set>.safetensors   sums over one set of experts, for `keep_sums`
    measures/<hh>/<hash>.safetensors     random probes of the experts of one spectrum, from which reports are made
    parts/<hash>.safetensors        the merged tensors of one shard
    parts/<hash>.json               its record, written last: the part is committed once the record exists
    parts/<hash>.arrow              values and statistics of its matrices
    runs/<run key>/<name>           the facts of one run, the keys it uses, the table of its spectra
    sweeps/<sweep key>/<name>       the scores of the candidates of a sweep, and the recipe of the best one
    claims/<name>                   which process works on which shard or run; may be deleted at any time
    probes/<name>                   left by a killed test of the store; may be deleted at any time

`<hash>` identifies the inputs of the computation (`core/planning/keys.py`); an object that exists need not be computed
again. `core/cache/kinds.py` has the checks of each kind of object.
"""

from __future__ import annotations

# Used by the command line and the flow when neither an option, the environment nor the recipe gives a store.
DEFAULT_STORE = "~/.cache/eigenmerge"

STORE_MARKER = "eigenmerge-store.json"
SPECTRA = "spectra/"
ALIGNMENTS = "alignments/"
SUMS = "sums/"
MEASURES = "measures/"
PARTS = "parts/"
RUNS = "runs/"
SWEEPS = "sweeps/"
CLAIMS = "claims/"
PROBES = "probes/"
FOLDERS = (SPECTRA, ALIGNMENTS, SUMS, MEASURES, PARTS, RUNS, SWEEPS, CLAIMS, PROBES)
