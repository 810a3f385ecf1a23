"""The kinds of value that stand in a recipe: model references, places, parameters, dtypes, sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from ..formats.dtypes import OUTPUT_DTYPES, OutputDtype
from .settings import parse_setting

# pydantic.ByteSize ignores what follows the first word: it reads "1e+9" as 1 e(xabyte). So the form is checked before.
_SIZE_FORM = re.compile(r"\s*[0-9]*\.?[0-9]+\s*[A-Za-z]*\s*")
_SIZE = TypeAdapter(pydantic.ByteSize)
_LARGEST_SIZE = 2**63 - 1
_CREDENTIALS = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@]*:[^/@]*@", re.IGNORECASE)


def parse_bytes(value: Any) -> int:
    """Return the number of bytes of 5000000000, "5GB" (units of 1000, as Hugging Face counts) or "5GiB" (of 1024).

    Raises
    ------
    ValueError : not a size, or not between 1 and 2**63 - 1 bytes
    """
    size = 0
    is_size = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    if is_size and _SIZE_FORM.fullmatch(str(value)):
        with suppress(ValidationError):
            size = int(_SIZE.validate_python(str(value)))
    if not 1 <= size <= _LARGEST_SIZE:
        raise ValueError(f"is {value!r}; expected a size such as 5GB or 512MiB")
    return size


def refuse_credentials(address: str) -> None:
    """For addresses that are recorded or shown.

    Raises
    ------
    ValueError : user:password@ in it; the message does not repeat it
    """
    if _CREDENTIALS.match(address):
        raise ValueError("holds credentials in its address; put them into storage_options or the environment")


def _model_reference(value: Any) -> Any:
    """mergekit also writes a model as {model: {path, revision}, lora: {path, revision}}; one string here."""

    def path(part: Any) -> Any:
        if isinstance(part, Mapping) and set(part) <= {"path", "revision"} and isinstance(part.get("path"), str):
            return part["path"] + (f"@{part['revision']}" if part.get("revision") else "")
        return part

    if isinstance(value, Mapping) and "override_architecture" in value:
        raise ValueError("override_architecture is not known here: the output keeps the base's config.json; remove it")
    if isinstance(value, Mapping) and set(value) <= {"model", "lora"} and "model" in value:
        model, lora = path(value["model"]), path(value.get("lora"))
        if isinstance(model, str) and (lora is None or isinstance(lora, str)):
            value = model + (f"+{lora}" if lora else "")
    value = path(value)
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; expected a path, a URI or a Hub name")
        refuse_credentials(value)
    return value


def _place(value: Any) -> Any:
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str):
        refuse_credentials(value)
    return value


def _setting(value: Any) -> Any:
    parse_setting(value)
    return value


def _dtype(value: Any) -> Any:
    word = value.removeprefix("torch.") if isinstance(value, str) else ""
    word = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}.get(word, word)
    if word not in OUTPUT_DTYPES:
        raise ValueError(f"is {value!r}; expected one of {', '.join(OUTPUT_DTYPES)}")
    return word


ModelReference = Annotated[str, BeforeValidator(_model_reference)]
Place = Annotated[str, BeforeValidator(_place)]
Parameters = dict[str, Annotated[Any, BeforeValidator(_setting)]]
Dtype = Annotated[OutputDtype, BeforeValidator(_dtype)]
ByteSize = Annotated[int, BeforeValidator(parse_bytes)]
