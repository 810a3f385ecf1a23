"""`eigenmerge.extract_adapter`: the command `extract` as a Python function."""

from __future__ import annotations

from ..core.extraction import extract_adapter as extraction
from .python_arguments import errors_name_arguments

extract_adapter = errors_name_arguments(extraction.extract_adapter)
