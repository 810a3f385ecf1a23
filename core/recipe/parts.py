"""Pydantic models of the parts of a recipe: models, slices, rules, calibration, output, runner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..choices import RunnerName
from ..errors import nearest, suggestion
from .faults import faults_error
from .fields import ByteCount, ModelReference, ParameterSettings


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys and suggests the nearest known key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            unknown = [key for key in cast("Mapping[Any, Any]", data) if key not in known]
            if unknown:
                faults = [f"unknown key {key!r}{suggestion(str(key), known)}" for key in unknown]
                raise faults_error(faults, {key: nearest(str(key), known) for key in unknown})
        return cast("Any", data)


class InputModel(StrictModel):
    """One expert."""

    model: ModelReference = Field(description="path, URI or Hub name, as path@revision+adapter")
    parameters: ParameterSettings | None = Field(
        default=None, description="this expert's own parameters: weight, density, ..."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, data: Any) -> Any:
        return {"model": data} if isinstance(data, (str, Path)) else data


class SliceSource(StrictModel):
    """The layers of one model that are merged into a slice of the output."""

    model: ModelReference = Field(description="path, URI or Hub name, as path@revision+adapter")
    layer_range: tuple[int, int] = Field(description="first layer and last layer + 1, as [0, 16]")
    parameters: ParameterSettings | None = Field(default=None, description="this source's own parameters")


class OutputSlice(StrictModel):
    """Consecutive layers of the output and the models that they are merged from."""

    sources: list[SliceSource] = Field(
        description="one or more models, each with the same number of layers", min_length=1
    )
    base_model: ModelReference | None = Field(default=None, description="base of this slice, instead of the recipe's")
    residual_weight: float | None = Field(default=None, description="without effect, as in mergekit; must be 0")
    parameters: ParameterSettings | None = Field(default=None, description="parameters for this slice")


class OutputModule(StrictModel):
    """The models or slices that one module of the model is merged from."""

    models: list[InputModel] | None = Field(default=None, description="the experts")
    slices: list[OutputSlice] | None = Field(default=None, description="output layers, slice by slice")
    parameters: ParameterSettings | None = Field(default=None, description="parameters for this module")


class Rule(StrictModel):
    """Settings for the tensors whose names match. For each setting, the first matching rule that sets it wins."""

    match: str | list[str] = Field(
        description="glob over the whole tensor name (model.layers.*.mlp.*), or re:REGEX searched in it; or several"
    )
    action: Literal["keep_base", "mean", "merge"] | None = Field(
        default=None, description="keep the base's tensor, add the mean delta to it, or merge by the method"
    )
    method: str | None = Field(default=None, description="merge these tensors by this method instead of merge_method")
    parameters: ParameterSettings | None = Field(default=None, description="parameters for these tensors")
    qkv: Literal["stored", "split"] | None = Field(
        default=None, description="fused QKV weights: as one matrix, or split into q, k and v"
    )
    conv: Literal["mean", "matrix", "base"] | None = Field(
        default=None, description="convolution kernels: mean delta, one matrix (out, in * kernel), or the base's"
    )
    orientation: Literal["out_in", "in_out"] | None = Field(
        default=None, description="how matrices are stored, where the architecture and the shapes do not show it"
    )

    @property
    def patterns(self) -> tuple[str, ...]:
        """`match` as a tuple."""
        return (self.match,) if isinstance(self.match, str) else tuple(self.match)

    @model_validator(mode="after")
    def _check_settings_and_patterns(self) -> Rule:
        if self.action in ("keep_base", "mean") and self.method is not None:
            raise ValueError(f"has both action {self.action!r} and a method; a method requires action merge")
        settings = (self.action, self.method, self.parameters, self.qkv, self.conv, self.orientation)
        if all(part is None for part in settings):
            raise ValueError("sets nothing; expected action, method, parameters, qkv, conv or orientation")
        if not self.patterns or not all(self.patterns):
            raise ValueError("has an empty pattern; expected a glob or re:REGEX")
        for pattern in self.patterns:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
        return self


class SvcCalibration(StrictModel):
    """Options of singular value calibration (SVC), arXiv:2602.05536."""

    alpha: float | None = Field(
        default=None, description="lower bound of the projections; by default 1/N for N experts, 1.0 after tsv_m", gt=0
    )
    count: Literal["changing", "all"] = Field(
        default="changing",
        description="which experts N counts in a layer: those that change it, or all, as the published code does",
    )


class Calibration(StrictModel):
    """Corrections of the merged delta after the method."""

    svc: SvcCalibration | None = Field(default=None, description="singular value calibration")

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            fields = cast("Mapping[str, Any]", data)
            if "svc" in fields and fields["svc"] is None:
                return {**fields, "svc": {}}  # `calibration: {svc: }` means SVC with its defaults
        return cast("Any", data)


class TokenSource(StrictModel):
    """Where the row of a token comes from in models that lack it."""

    kind: Literal["model", "model_token", "zero"] = Field(
        description="this token's row of a model, the row of another token of it, or zeros"
    )
    model: ModelReference | None = Field(default=None, description="base_model or one of the models")
    token: str | None = Field(default=None, description="of model_token: the other token")
    token_id: int | None = Field(default=None, description="of model_token: its row", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_reference(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "kind" in data:
            return cast("Any", data)
        return cast("dict[str, Any]", {"kind": "model", "model": data})

    @model_validator(mode="after")
    def _check_kind(self) -> TokenSource:
        if (self.kind == "zero") != (self.model is None):
            raise ValueError(f"kind {self.kind} {'needs no' if self.kind == 'zero' else 'needs a'} model")
        given = (self.token is not None) + (self.token_id is not None)
        if given != (self.kind == "model_token"):
            raise ValueError("expected one of token and token_id for kind model_token, and none for other kinds")
        return self


class TokenOptions(StrictModel):
    """The row of one token of the output."""

    source: TokenSource = Field(description="a model, {kind: model_token, model, token or token_id}, or {kind: zero}")
    force: bool = Field(default=False, description="whether models that have the token take this row too")


class TokenizerOptions(StrictModel):
    """mergekit's long form of tokenizer_source."""

    source: ModelReference = Field(default="union", description="union, base, or a model")
    tokens: dict[str, TokenOptions] | None = Field(
        default=None, description="where the rows of tokens come from; tokens that the vocabulary lacks are added"
    )
    pad_to_multiple_of: int | None = Field(
        default=None, description="rows of the output are rounded up to a multiple; the new rows are the mean row", gt=0
    )


class OutputOptions(StrictModel):
    """Format and file sizes of the result."""

    format: Literal["checkpoint", "adapter"] = Field(
        default="checkpoint", description="full weights, or a PEFT adapter"
    )
    max_shard_size: ByteCount = Field(default=5 * 1000**3, description="largest size of one .safetensors file")
    rank: int | None = Field(
        default=None, description="rank of the adapter; by default the sum of the experts' ranks", gt=0
    )
    float8: Literal["block", "channel"] | None = Field(
        default=None,
        description="store the linear layers as float8 E4M3, with a scale for each block of 128 x 128 or each row",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, data: Any) -> Any:
        return {"format": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check_float8(self) -> OutputOptions:
        if self.float8 is not None and self.format == "adapter":
            raise ValueError("float8 is for checkpoints; an adapter keeps the dtype of its factors")
        return self


class RunnerOptions(StrictModel):
    """Task runner of the shards."""

    kind: RunnerName = Field(default="threads", description="kind of Prefect task runner")
    workers: int | None = Field(
        default=None,
        description="shards computed at once; by default one per GPU or core",
        gt=0,
    )
    address: str | None = Field(
        default=None, description="address of a Dask scheduler or Ray cluster; by default a local one"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data
