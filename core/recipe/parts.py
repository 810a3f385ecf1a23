"""The parts of a recipe: models, slices, rules, calibration, output, runner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import suggestion
from .fields import ByteSize, ModelReference, Parameters


class Strict(BaseModel):
    """Frozen, and an unknown key is an error that suggests the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise ValueError(f"unknown key {key!r}{suggestion(str(key), known)}")
        return data


class InputModel(Strict):
    """One expert."""

    model: ModelReference = Field(description="path, URI or Hub name, as path@revision+adapter")
    parameters: Parameters | None = Field(
        default=None, description="this expert's own parameters: weight, density, ..."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, data: Any) -> Any:
        return {"model": data} if isinstance(data, (str, Path)) else data


class SliceSource(Strict):
    """Layers of one model that go into a slice of the output."""

    model: ModelReference = Field(description="path, URI or Hub name, as path@revision+adapter")
    layer_range: tuple[int, int] = Field(description="first layer and the one after the last, as [0, 16]")
    parameters: Parameters | None = Field(default=None, description="this source's own parameters")


class OutputSlice(Strict):
    """A run of layers of the output and the models it is merged from."""

    sources: list[SliceSource] = Field(description="one or more models with as many layers each", min_length=1)
    base_model: ModelReference | None = Field(default=None, description="must agree with the recipe's base_model")
    residual_weight: float | None = Field(
        default=None, description="not supported, as mergekit itself does not read it"
    )
    parameters: Parameters | None = Field(default=None, description="parameters for this slice")


class OutputModule(Strict):
    """mergekit's grouping for models of several modules; here one module at most."""

    models: list[InputModel] | None = Field(default=None, description="the experts")
    slices: list[OutputSlice] | None = Field(default=None, description="output layers, slice by slice")
    parameters: Parameters | None = Field(default=None, description="parameters for this module")


class Rule(Strict):
    """What happens to the tensors whose name matches. The first rule that says something about a point decides it."""

    match: str | list[str] = Field(
        description="glob over the whole tensor name (model.layers.*.mlp.*), or re:REGEX searched in it; or several"
    )
    action: Literal["keep_base", "mean", "merge"] | None = Field(
        default=None, description="keep the base's tensor, add the mean delta, or merge by the method"
    )
    method: str | None = Field(default=None, description="merge these tensors by this method instead of merge_method")
    parameters: Parameters | None = Field(default=None, description="parameters for these tensors")
    qkv: Literal["stored", "split"] | None = Field(
        default=None, description="fused QKV weights: one matrix, or q, k, v apart"
    )
    conv: Literal["mean", "matrix", "base"] | None = Field(
        default=None, description="convolution kernels: mean delta, one matrix (out, in * kernel), or the base's"
    )

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.match,) if isinstance(self.match, str) else tuple(self.match)

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if self.action in ("keep_base", "mean") and self.method is not None:
            raise ValueError(f"has both action {self.action!r} and a method; a method goes with action merge")
        if all(part is None for part in (self.action, self.method, self.parameters, self.qkv, self.conv)):
            raise ValueError("says nothing; expected action, method, parameters, qkv or conv")
        if not self.patterns or not all(self.patterns):
            raise ValueError("has an empty pattern; expected a glob or re:REGEX")
        for pattern in self.patterns:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
        return self


class SvcCalibration(Strict):
    """SVC after the method, arXiv:2602.05536."""

    alpha: float | None = Field(
        default=None, description="floor of the projections; 1/N by default, 1.0 after tsv_m", gt=0
    )


class Calibration(Strict):
    """What is done to the merged delta after the method."""

    svc: SvcCalibration | None = Field(default=None, description="singular value calibration")

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "svc" in data and data["svc"] is None:
            return {**data, "svc": {}}  # `calibration: {svc: }` asks for it with its default
        return data


class TokenizerOptions(Strict):
    """mergekit's long form of tokenizer_source."""

    source: ModelReference = Field(default="union", description="union, base, or a model")
    tokens: dict[str, Any] | None = Field(default=None, description="not supported: embeddings chosen token by token")
    pad_to_multiple_of: int | None = Field(default=None, description="not supported", gt=0)


class OutputOptions(Strict):
    """The form of the result."""

    format: Literal["checkpoint", "adapter"] = Field(
        default="checkpoint", description="full weights, or a PEFT adapter"
    )
    max_shard_size: ByteSize = Field(default=5 * 1000**3, description="largest size of one .safetensors file")
    rank: int | None = Field(
        default=None, description="rank of the adapter; by default the sum of the experts' ranks", gt=0
    )

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, data: Any) -> Any:
        return {"format": data} if isinstance(data, str) else data


class RunnerOptions(Strict):
    """Where the shards run."""

    kind: Literal["threads", "dask", "ray"] = Field(default="threads", description="Prefect task runner")
    workers: int | None = Field(default=None, description="shards at a time; by default one per GPU, or by cores", gt=0)
    address: str | None = Field(default=None, description="of a Dask scheduler or Ray cluster; by default a local one")

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data
