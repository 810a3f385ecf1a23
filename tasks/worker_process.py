"""Settings of the processes that Eigenmerge starts: Prefect's senders are silent, and workers ignore Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal

# Prefect's background senders log below these names, which no setting of Prefect covers: a slow or ended server makes
# them warn about events that were not sent. A merge does not depend on these events.
_SENDERS = ("EventsWorker", "APILogWorker")


def silence_senders() -> None:
    """Silence Prefect's background senders where Prefect's log is silent (PREFECT_LOGGING_LEVEL is CRITICAL)."""
    if os.environ.get("PREFECT_LOGGING_LEVEL") == "CRITICAL":
        for sender in _SENDERS:
            logging.getLogger(sender).setLevel(logging.CRITICAL)


def remove_terminal_handlers() -> None:
    """Remove the handlers that Prefect has attached to loggers and that write to the terminal, if its log is silent."""
    if os.environ.get("PREFECT_LOGGING_LEVEL") != "CRITICAL":
        return
    loggers = [logging.root, *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    for logger in loggers:
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("prefect."):
                logger.removeHandler(handler)
                logger.addHandler(logging.NullHandler())  # otherwise Python prints warnings itself


def prepare_worker() -> None:
    """Prepare a worker process of a local cluster.

    A terminal sends Ctrl-C to all processes of the group. Workers ignore it: the run cancels its shards and ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_senders()
    remove_terminal_handlers()
