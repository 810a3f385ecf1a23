"""Keys as the store has them, from short names: "parts/x.json" stands for parts/<64 digits>.json."""

from __future__ import annotations

import hashlib
import re

_SHORT_NAMES: dict[str, str] = {}


def long_key(short: str) -> str:
    """Return a key of the form of a real one; keys of other forms are returned unchanged."""
    folder, _, rest = short.partition("/")
    name, dot, suffix = rest.rpartition("/")[2].partition(".")
    hashed = hashlib.sha256(name.encode()).hexdigest()
    forms = {
        "spectra": f"spectra/{hashed[:2]}/{hashed}.{suffix}",
        "alignments": f"alignments/{hashed}.{suffix}",
        "parts": f"parts/{hashed}.{suffix}",
        "claims": f"claims/{hashed}.{suffix}",
        "probes": f"probes/{hashed[:32]}",
        "sums": f"sums/{hashed[:2]}/{hashed}/{name[:6] if re.match('[0-9]{6}', name) else '000001'}-{hashed}.{suffix}",
        "runs": f"runs/{long_run_key(rest.partition('/')[0])}/{name}{dot}{suffix}",
    }
    found = forms.get(folder, short)
    _SHORT_NAMES[found] = short
    return found


def short_key(key: str) -> str:
    """Return the name from which `long_key` or `long_run_key` made a key."""
    return _SHORT_NAMES.get(key, key)


def long_run_key(short: str) -> str:
    """Return a run key that begins with `short`, which consists of hexadecimal digits."""
    found = short.ljust(64, "0")
    _SHORT_NAMES[found] = short
    return found
