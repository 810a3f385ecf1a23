"""Field types of recipes: model references, addresses, parameters, dtypes and sizes in bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, cast

import pydantic
from pydantic import BeforeValidator, TypeAdapter, ValidationError, WithJsonSchema

from ..formats.dtypes import OUTPUT_DTYPES, OutputDtype
from ..formats.redaction import has_password
from .settings import parse_setting

# pydantic.ByteSize ignores what follows the unit and would read "1e+9" as one exabyte: check the whole text first.
_SIZE_FORM = re.compile(r"\s*[0-9]*\.?[0-9]+\s*[A-Za-z]*\s*")
_SIZE = TypeAdapter(pydantic.ByteSize)
_LARGEST_SIZE = 2**63 - 1
_SHORT_DTYPE_NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}


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


def refuse_credentials(text: str) -> None:
    """Check that an address, or a text with addresses, that is recorded or displayed contains no credentials.

    Raises
    ------
    ValueError : an address contains user:password@; the message does not repeat it
    """
    if has_password(text):
        raise ValueError("contains credentials; put them into storage_options or the environment")


def _parse_model_reference(value: Any) -> Any:
    """Return "path@revision+adapter", also for mergekit's {model: {path, revision}, lora: {path, revision}}."""
    if isinstance(value, Mapping):
        value = _join_model_and_lora(cast("Mapping[Any, Any]", value))
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; expected a path, a URI or a Hub name")
        refuse_credentials(value)
    return value


def _join_model_and_lora(value: Mapping[Any, Any]) -> Any:
    if value.get("override_architecture") is not None:
        raise ValueError("override_architecture is not supported: the output keeps the base's config.json; remove it")
    if "model" in value and set(value) <= {"model", "lora", "override_architecture"}:
        model, lora = _join_revision(value["model"]), _join_revision(value.get("lora"))
        if isinstance(model, str) and (lora is None or isinstance(lora, str)):
            return model + (f"+{lora}" if lora else "")
    return _join_revision(value)


def _join_revision(part: Any) -> Any:
    """Return "path@revision" for {path, revision}; any other value unchanged, for pydantic to check."""
    if isinstance(part, Mapping):
        fields = cast("Mapping[Any, Any]", part)
        if set(fields) <= {"path", "revision"} and isinstance(fields.get("path"), str):
            return fields["path"] + (f"@{fields['revision']}" if fields.get("revision") else "")
    return cast("Any", part)


def _parse_address(value: Any) -> Any:
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str):
        refuse_credentials(value)
    return value


def _check_setting(value: Any) -> Any:
    parse_setting(value)
    return value


def _parse_dtype(value: Any) -> Any:
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    name = _SHORT_DTYPE_NAMES.get(name, name)
    if name not in OUTPUT_DTYPES:
        raise ValueError(f"is {value!r}; expected one of {', '.join(OUTPUT_DTYPES)}")
    return name


# The JSON Schemas state what the validators accept, for editors (json_schema.py).
_REVISION_SCHEMA = {"type": ["string", "null"]}
_PART_SCHEMA = {
    "type": ["string", "object", "null"],
    "properties": {"path": {"type": "string"}, "revision": _REVISION_SCHEMA},
}
_MODEL_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {
                "model": _PART_SCHEMA,
                "lora": _PART_SCHEMA,
                "path": {"type": "string"},
                "revision": _REVISION_SCHEMA,
                "override_architecture": {"type": "null"},
            },
            "additionalProperties": False,
        },
    ]
}
_SIZE_SCHEMA = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{_SIZE_FORM.pattern}$"}],
    "examples": ["5GB", "512MiB"],
}
_DTYPE_SCHEMA = {
    "enum": [*OUTPUT_DTYPES, *_SHORT_DTYPE_NAMES, *(f"torch.{name}" for name in OUTPUT_DTYPES)],
}

ModelReference = Annotated[str, BeforeValidator(_parse_model_reference), WithJsonSchema(_MODEL_SCHEMA)]
Address = Annotated[str, BeforeValidator(_parse_address)]
ParameterSettings = dict[str, Annotated[Any, BeforeValidator(_check_setting)]]
DtypeName = Annotated[OutputDtype, BeforeValidator(_parse_dtype), WithJsonSchema(_DTYPE_SCHEMA)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes), WithJsonSchema(_SIZE_SCHEMA)]
