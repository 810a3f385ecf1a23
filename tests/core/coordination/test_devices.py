"""Two shards never share a GPU, in threads or processes, and a killed process releases its GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eigenmerge.core.coordination.devices import hold_device, own_folder
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.errors import InterruptedRunError, RecipeError

GPUS = {"cuda:0": "GPU-aaaa", "cuda:1": "GPU-bbbb"}


def test_the_cpu_is_shared(tmp_path: Path) -> None:
    with hold_device("cpu", StopSignal()) as first, hold_device("cpu", StopSignal()) as second:
        assert first == second == "cpu"


def test_threads_never_share_a_gpu_and_use_all(tmp_path: Path) -> None:
    holders: dict[str, int] = {}
    used: set[str] = set()
    shared: list[str] = []
    lock = threading.Lock()

    def shard() -> None:
        with hold_device("cuda", StopSignal(), visible=lambda: GPUS, folder=tmp_path) as device:
            with lock:
                holders[device] = holders.get(device, 0) + 1
                used.add(device)
                if holders[device] > 1:
                    shared.append(device)
            time.sleep(0.05)
            with lock:
                holders[device] -= 1

    threads = [threading.Thread(target=shard) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared == [] and used == set(GPUS)


def test_a_named_gpu_is_waited_for(tmp_path: Path) -> None:
    stop = StopSignal()
    with hold_device("cuda:1", stop, visible=lambda: GPUS, folder=tmp_path) as device:
        assert device == "cuda:1"
        stop.stop("a test")
        with pytest.raises(InterruptedRunError), hold_device("cuda:1", stop, visible=lambda: GPUS, folder=tmp_path):
            pass
        with hold_device("cuda", stop, visible=lambda: GPUS, folder=tmp_path) as other:
            assert other == "cuda:0"


def test_a_killed_process_releases_its_gpu(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from eigenmerge.core.coordination.devices import hold_device, own_folder
from eigenmerge.core.coordination.stop import StopSignal
with hold_device("cuda", StopSignal(), visible=lambda: {{"cuda:0": "GPU-aaaa"}}, folder=Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    stop = StopSignal(deadline=time.monotonic() + 0.3)
    one = {"cuda:0": "GPU-aaaa"}
    with pytest.raises(InterruptedRunError), hold_device("cuda", stop, visible=lambda: one, folder=tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with hold_device("cuda", StopSignal(), visible=lambda: one, folder=tmp_path) as device:
        assert device == "cuda:0"


@pytest.mark.parametrize(("device", "word"), [("cuda", "no GPU"), ("cuda:7", "cuda:7"), ("gpu", "unknown")])
def test_a_device_that_does_not_exist(tmp_path: Path, device: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word), hold_device(device, StopSignal(), visible=dict, folder=tmp_path):
        pass


def test_a_lock_folder_that_others_can_change_is_refused(tmp_path: Path) -> None:
    assert own_folder(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "open", "file"):
        with pytest.raises(RecipeError, match="cannot hold the lock files of GPUs"):
            own_folder(tmp_path / name)
