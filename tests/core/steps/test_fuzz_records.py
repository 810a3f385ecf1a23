"""Small objects of a store and of a destination with any content: our own errors, or as if nothing stood there."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eigenmerge.core.cache.alignments import read_alignment
from eigenmerge.core.cache.parts import find_part, record_key, write_record
from eigenmerge.core.cache.reports import ShardReport, TensorReport
from eigenmerge.core.cache.run_folder import run_object_key
from eigenmerge.core.cache.runs import read_run, read_run_objects
from eigenmerge.core.cache.sealed_json import write_sealed_json
from eigenmerge.core.errors import CorruptObjectError, DestinationError, ObjectNotFoundError
from eigenmerge.core.formats.file_names import MANIFEST_NAME, MARKER_NAME
from eigenmerge.core.output.destination import Destination, clear_for_writing, take_destination
from eigenmerge.core.planning.plan import LayerShard, OutputFile, TensorPlan
from eigenmerge.core.publishing.publication import LATEST, read_publication
from eigenmerge.core.storage.store import Store

PART, RUN, ALIGNMENT = "parts/abc.safetensors", "0123abcd", "alignments/abc.json"
DATA = b"0123456789abcdef"
REPORT = ShardReport(
    index=0,
    part_key=PART,
    num_bytes=16,
    header_bytes=8,
    sha256=hashlib.sha256(DATA).hexdigest(),
    etag="e",
    seconds=1.0,
    bytes_read=5,
    tensors=(TensorReport("w", "merge", "swudi", 0.5, "00", 3, 0.9, "computed", "spectra/a.arrow", ("n",)),),
)
SHARD = LayerShard(0, (TensorPlan("w", (2, 2), "F32", "merge", "", None),), PART, 5, 16, 0.0, 0)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
any_bytes = st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode())


@cache
def store() -> Store:
    return Store("memory://fuzz-of-records")


def changed(draw: st.DrawFn, original: Any) -> Any:
    """A deep copy with one value, somewhere inside, that is another or gone."""
    content = copy.deepcopy(original)
    place = content
    while True:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        place = inner
    if draw(st.booleans()):
        place[key] = draw(json_values)
    else:
        del place[key]
    return content


@st.composite
def changed_reports(draw: st.DrawFn) -> bytes:
    body = json.dumps(changed(draw, json.loads(json.dumps(REPORT.to_dict()))))
    sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "report": body}
    return json.dumps(sealed if draw(st.booleans()) else changed(draw, sealed)).encode()


@settings(deadline=None, max_examples=300)
@given(any_bytes | changed_reports())
@example(b"[" * 100_000)
def test_the_record_of_a_part(content: bytes) -> None:
    store().write(PART, DATA)
    write_record(store(), REPORT)
    store().write(record_key(PART), content)
    found, reason = find_part(store(), SHARD)
    if found is None:
        assert reason is not None and "made again" in reason
    else:
        # What a part's record decides is bound to the part itself: its size and its hash.
        assert (found.num_bytes, found.part_key, found.reused) == (16, PART, True)
        assert [tensor.name for tensor in found.tensors] == ["w"]
        assert isinstance(found.header_bytes, int) and 0 <= found.header_bytes <= 16


def test_a_whole_record_is_found() -> None:
    store().write(PART, DATA)
    write_record(store(), REPORT)
    found, reason = find_part(store(), SHARD)
    assert reason is None and found is not None and found.tensors == REPORT.tensors


READERS: dict[str, tuple[str, dict[str, Any], Callable[[Store], object]]] = {
    "run": (
        run_object_key(RUN, "run.json"),
        {"format": 1, "run_key": RUN, "method": "swudi", "experts": ["a"], "result": {"seconds": 1.0}},
        lambda found: read_run(found, RUN),
    ),
    "objects of a run": (
        run_object_key(RUN, "objects.json"),
        {"format": 1, "run_key": RUN, "objects": ["parts/a", "spectra/b"]},
        lambda found: read_run_objects(found, RUN),
    ),
    "alignment": (
        ALIGNMENT,
        {"format": 1, "key": ALIGNMENT, "largest_values": {"spectra/a.arrow": 1.5}},
        lambda found: read_alignment(found, ALIGNMENT),
    ),
}


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_sealed_records(kind: str, data: st.DataObject) -> None:
    key, content, read = READERS[kind]
    write_sealed_json(store(), key, content)
    assert read(store()) is not None
    if data.draw(st.booleans(), label="sealed anew"):
        altered = data.draw(st.composite(changed)(content))
        altered.pop("sha256", None)
        write_sealed_json(store(), key, altered)
    else:
        store().write(key, data.draw(any_bytes))
    try:
        read(store())
    except CorruptObjectError as error:
        assert key in str(error) and "\n" not in str(error)


@settings(deadline=None, max_examples=150)
@given(any_bytes)
def test_the_pointer_of_scheduled_merges(content: bytes) -> None:
    store().write(LATEST, content)
    try:
        read_publication(store())
    except CorruptObjectError as error:
        assert LATEST in str(error)


PLAN: Any = SimpleNamespace(run_key="ours", files=(OutputFile("model.safetensors", (0,), 16),), side_files=())


@settings(deadline=None, max_examples=150)
@given(
    marker=st.none() | any_bytes | st.just(b'{"run_key": "ours"}'),
    manifest=st.none() | any_bytes | st.just(b'{"run_key": "ours"}'),
    overwrite=st.booleans(),
)
def test_a_destination(marker: bytes | None, manifest: bytes | None, overwrite: bool) -> None:
    place = Store("memory://fuzz-of-destinations")
    place.delete([info.key for info in place.list("")])
    for name, content in ((MARKER_NAME, marker), (MANIFEST_NAME, manifest)):
        if content is not None:
            place.write(name, content)
    try:
        claim = take_destination(Destination(place.root_uri, place, overwrite), PLAN)
    except DestinationError as error:
        assert not overwrite and place.root_uri in str(error)
        return
    assert claim is not None, "there are no weights, so nothing is finished"
    clear_for_writing(place, PLAN)
    assert claim.check()
    claim.release()
    if manifest is not None and b"ours" not in manifest:
        with pytest.raises(ObjectNotFoundError):
            place.read(MANIFEST_NAME)
