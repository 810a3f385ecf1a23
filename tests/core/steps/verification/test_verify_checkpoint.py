"""Verifying a checkpoint whose manifest holds arbitrary values."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.formats.file_names import MANIFEST_NAME
from eigenmerge.core.output.read_manifest import read_manifest
from eigenmerge.core.steps.verification.verify_checkpoint import verify_checkpoint
from eigenmerge.core.storage.store import Store

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_no_change_of_a_manifest_causes_a_traceback(data: st.DataObject) -> None:
    """Whatever value is replaced, the result is an error of Eigenmerge, a problem, or no difference."""
    manifest = _manifest()
    inner: Any = manifest
    for _ in range(data.draw(st.integers(1, 3))):
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or not inner[key] or data.draw(st.booleans()):
            break
        inner = inner[key]
    else:
        key = data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else list(range(len(inner)))))
    inner[key] = data.draw(json_values)
    store = Store(f"memory://verify-{uuid.uuid4().hex}")
    store.write(MANIFEST_NAME, json.dumps(manifest).encode())
    store.write("model.safetensors", _FILE)
    try:
        read_manifest(store)
    except CheckpointError:
        return
    try:
        verify_checkpoint(store, sample=1)
    except (CheckpointError, OSError) as error:
        assert "refused" in str(error), error  # a file name that leaves the folder


_HEADER = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
_FILE = len(_HEADER).to_bytes(8, "little") + _HEADER + b"\0\0\0\0"


def _manifest() -> dict[str, Any]:
    return {
        "format": 1,
        "eigenmerge": "0",
        "run_key": "k",
        "recipe": {"merge_method": "average", "base_model": "/nowhere", "models": [{"model": "/nowhere/either"}]},
        "base": {"name": "/nowhere", "fingerprint": "f"},
        "experts": [{"name": "/nowhere/either", "fingerprint": "g"}],
        "files": [{"name": "model.safetensors", "num_bytes": len(_FILE), "sha256": None}],
        "side_files": {"config.json": "0" * 64},
        "tensors": [
            {
                "name": "w",
                "shape": [1],
                "dtype": "F32",
                "action": "merge",
                "sha256": hashlib.sha256(b"\0" * 4).hexdigest(),
            }
        ],
    }
