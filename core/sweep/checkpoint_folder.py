"""Write the checkpoint of a candidate into a temporary folder, without parts in the store and without a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..output.commit import write_index
from ..output.file_hashes import file_header
from ..planning.plan import TensorPlan
from ..planning.shards import written_bytes
from ..run import Run
from ..storage.checkpoints.file_version import read_unchanged
from ..storage.store import Store


def write_checkpoint_folder(
    run: Run, folder: Path, bytes_of: Callable[[TensorPlan], memoryview], *, workers: int
) -> None:
    """Write weight files, index, config and tokenizer files: what Transformers reads.

    Memory: `workers` tensors.

    Parameters
    ----------
    folder : empty
    bytes_of : merges one tensor; called in `workers` threads
    """
    plan = run.plan
    for file in plan.files:
        header = file_header(plan, file)
        path = folder / file.name
        with path.open("wb") as stream:
            stream.write(header)
            stream.truncate(file.num_bytes)
            tensors = [tensor for index in file.shards for tensor in plan.shards[index].tensors]
            starts, position = [], len(header)
            for tensor in tensors:
                starts.append(position)
                position += written_bytes(tensor)
            stream.flush()

            def write(tensor: TensorPlan, start: int, descriptor: int = stream.fileno()) -> None:
                data = bytes_of(tensor)
                while data:  # a write may be shorter than its buffer
                    done = os.pwrite(descriptor, data, start)
                    data, start = data[done:], start + done

            with ThreadPoolExecutor(workers, thread_name_prefix="candidate") as pool:
                for _ in pool.map(write, tensors, starts):
                    pass
    for side in plan.side_files:
        content = side.content
        if content is None:
            assert side.source_uri is not None
            content = read_unchanged(side.source_uri, side.version, run.storage_options)
        target = folder / side.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    write_index(Store(str(folder)), plan)
