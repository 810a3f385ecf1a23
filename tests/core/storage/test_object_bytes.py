"""Ranges of objects as tensors, on local disk, in memory and on S3."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.object_bytes import fetch_bytes, read_object_bytes
from eigenmerge.core.storage.store import Store

Place = Callable[[str], Store]
MIB = 2**20


def test_ranges_of_one_and_of_several_requests(place: Place) -> None:
    store, content = place("store"), os.urandom(20 * MIB)
    store.write("x", content)
    for start, stop in ((0, 1), (3, 1000), (5, 8 * MIB + 5), (1, 20 * MIB), (7, 7)):
        for read in (read_object_bytes, fetch_bytes):
            if start == stop and read is fetch_bytes:
                continue
            found = read(store, "x", start, stop)
            assert found.dtype == torch.uint8
            assert found.numpy().tobytes() == content[start:stop]


def test_writing_to_the_tensor_does_not_change_the_store(place: Place) -> None:
    store = place("store")
    store.write("x", b"content")
    read_object_bytes(store, "x", 0, 7).fill_(0)
    assert store.read("x") == b"content"


def test_missing_and_short_objects(place: Place) -> None:
    store = place("store")
    store.write("x", b"content")
    with pytest.raises(ObjectNotFoundError, match="none"):
        read_object_bytes(store, "none", 0, 1)
    with pytest.raises(CorruptObjectError, match="7 bytes"):
        read_object_bytes(store, "x", 0, 8)


PROGRAM = """
import re
from concurrent.futures import ThreadPoolExecutor
from eigenmerge.core.storage.object_bytes import fetch_bytes
from eigenmerge.core.storage.store import Store

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def fetch(number):
    return len(fetch_bytes(store, "x", 0, 32 * 2**20))

store = Store("memory://resident")
store.write("x", bytes(32 * 2**20))
fetch(0)
before = resident()
for _ in range(4):  # as the base and the experts of a tensor are read ahead
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(fetch, range(3)))
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries return memory as they like")
def test_what_requests_needed_is_returned_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 24 * MIB  # 40 to 48 MiB where heaps keep the requests, below 1 MiB otherwise
