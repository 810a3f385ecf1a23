"""Import large packages without garbage collections, which find nothing then and take a fifth of the time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator


@contextlib.contextmanager
def paused_collector(*, freeze: bool = False) -> Generator[None]:
    """Collect no garbage within the block; afterwards as before.

    Parameters
    ----------
    freeze : leave all that exists at the end of the block out of later collections, each of which would look at the
        million objects of torch and Prefect. Only once in a process, because garbage would stay, too
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze and not gc.get_freeze_count():
            gc.freeze()
        if was_enabled:
            gc.enable()
