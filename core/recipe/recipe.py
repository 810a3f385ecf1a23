"""The recipe: a mergekit YAML with additional keys of Eigenmerge, validated.

A recipe that mergekit accepts is accepted if Eigenmerge has the method. What mergekit ignores silently (unknown keys,
misspelled parameters, duplicate keys) is an error that names the key and the nearest known name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, cast

from pydantic import Field, ValidationError, field_validator, model_validator

from ..errors import RecipeError, suggestion
from ..numerics.method import AnyMethod, SpectralMethod
from ..numerics.noise.storage_noise import NoiseHandling
from ..numerics.registry import get_method
from .faults import faults_error, find_faults, join_faults
from .fields import Address, ByteCount, DtypeName, ModelReference, ParameterSettings
from .mergekit_forms import describe_ineffective, has_no_effect, normalize_forms
from .parts import (
    Calibration,
    InputModel,
    OutputModule,
    OutputOptions,
    OutputSlice,
    Rule,
    RunnerOptions,
    StrictModel,
    TokenizerOptions,
)
from .presets import apply_preset
from .regions import Region
from .settings import check_values, parse_setting, type_adapters


class Recipe(StrictModel):
    """Models, method and options of a merge. mergekit's keys come first, then those of Eigenmerge."""

    merge_method: str = Field(description="one of `eigenmerge methods`")
    base_model: ModelReference | None = Field(default=None, description="what the experts were fine-tuned from")
    models: list[InputModel] | None = Field(default=None, description="the experts")
    slices: list[OutputSlice] | None = Field(
        default=None, description="output layers, slice by slice, instead of models"
    )
    modules: dict[str, OutputModule] | None = Field(
        default=None, description="models or slices for each module of the model: encoder, text_decoder, ..."
    )
    parameters: ParameterSettings | None = Field(
        default=None, description="parameters of the method, for all tensors and experts"
    )
    dtype: DtypeName | None = Field(
        default=None, description="dtype of the output; float64 selects float64 arithmetic too"
    )
    out_dtype: DtypeName | None = Field(default=None, description="dtype of the output; overrides dtype")
    tokenizer_source: ModelReference | None = Field(default=None, description="base, union, or a model")
    tokenizer: TokenizerOptions | None = Field(default=None, description="mergekit's long form of tokenizer_source")
    chat_template: str | None = Field(
        default=None, description="a Jinja template for the output, the name of one (chatml), or auto"
    )
    name: str | None = Field(
        default=None, description="of this document, by which other documents of the recipe use its result"
    )

    preset: str | None = Field(default=None, description="name of a published setting; keys of the recipe override it")
    rules: list[Rule] = Field(default_factory=list[Rule], description="exceptions by tensor name")
    calibration: Calibration | None = Field(default=None, description="SVC of the merged delta")
    embeddings: Literal["mean", "base", "merge"] = Field(
        default="mean",
        description="embedding matrices under a spectral method; other methods merge them like any tensor",
    )
    lm_head: Literal["mean", "base", "merge"] = Field(
        default="mean", description="the output projection under a spectral method"
    )
    vectors: Literal["mean", "base"] = Field(
        default="mean", description="norms, biases and other 1-D tensors under a spectral method"
    )
    conv: Literal["mean", "matrix", "base"] = Field(
        default="mean", description="convolution kernels under a spectral method"
    )
    qkv: Literal["stored", "split"] = Field(
        default="stored", description="fused QKV weights: as one matrix, or split into q, k and v"
    )
    missing: Literal["error", "base"] = Field(
        default="error", description="an expert that lacks a tensor: an error, or the base's tensor is used"
    )
    allow_mixed_architectures: bool = Field(
        default=False,
        description="merge models although their config.json differ in what the same weights compute (model type,"
        " heads, rotary positions, activation); mergekit's --allow-crimes",
    )
    arithmetic: Literal["float32", "float64"] | None = Field(
        default=None, description="float32 unless dtype is float64"
    )
    seed: int = Field(default=0, description="seed of the methods that draw random masks", ge=0, lt=2**63)
    storage_noise: NoiseHandling = Field(
        default="cut",
        description="directions of a weight's change that are the rounding of bfloat16, float16 or float8 storage, and"
        " nothing else: cut leaves them out, shrink also corrects the singular values of the others for it, ignore"
        " merges them",
    )
    spectra: Literal["full", "top", "values", "none"] = Field(
        default="full",
        description="which parts of decompositions the store keeps. top: all eigenvalues, and vectors of the leading"
        " directions only (a sixteenth at most); filters that use more decompose again",
    )
    spectra_dtype: Literal["float32", "float64", "arithmetic"] = Field(
        default="arithmetic", description="dtype of kept spectra"
    )
    fingerprint: Literal["sampled", "content"] = Field(
        default="sampled",
        description="how models are identified. sampled: by all bytes of a model of at most 1 GiB (64 MiB on remote"
        " storage); larger ones by samples of every tensor and by etag, hash on the Hub or times of the file. content:"
        " by all bytes, so that a copy of a large model has the same keys too; planning then reads all weights once",
    )
    keep_sums: bool = Field(
        default=False,
        description="keep the sums over experts, so that adding an expert reads only that expert",
    )
    output: OutputOptions = Field(default_factory=OutputOptions, description="format and file sizes of the result")
    store: Address | None = Field(default=None, description="URI of the store for spectra and parts")
    storage_options: dict[str, Any] | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="fsspec options, credentials included; never recorded",
    )
    runner: RunnerOptions = Field(default_factory=RunnerOptions, description="task runner of the shards")
    max_memory: ByteCount | None = Field(
        default=None, description="memory of all workers of a machine; a plan that exceeds it is refused"
    )

    @field_validator("fingerprint", mode="before")
    @classmethod
    def _rename_fingerprint(cls, value: object) -> object:
        return "sampled" if value == "stat" else value  # the name of the default in earlier recipes and manifests

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return apply_preset(normalize_forms(cast("Mapping[str, Any]", data)))

    @model_validator(mode="after")
    def _check_structure(self) -> Recipe:
        forms = [key for key in ("models", "slices", "modules") if getattr(self, key)]
        if len(forms) != 1:
            empty = [key for key in ("models", "slices", "modules") if getattr(self, key) is not None]
            found = f"found {' and '.join(forms)}" if forms else f"{empty[0]} is empty" if empty else "found none"
            raise ValueError(f"exactly one of models, slices, modules must be given; {found}")
        for name, module in (self.modules or {}).items():
            if not name.strip():
                raise ValueError("modules: has a module without a name; expected a name such as text_decoder")
            if bool(module.models) == bool(module.slices):
                raise ValueError(f"modules.{name}: exactly one of models, slices must be given inside a module")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("both tokenizer and tokenizer_source are set; keep one of them")
        for token, options in ((self.tokenizer.tokens if self.tokenizer is not None else None) or {}).items():
            known = [reference for reference in (self.base_model, *self.expert_references) if reference is not None]
            if options.source.model is not None and options.source.model not in known:
                raise ValueError(
                    f"tokenizer.tokens.{token}.source: {options.source.model!r} is not one of the merged models"
                )
        return self

    @model_validator(mode="after")
    def _check_parameters(self) -> Recipe:
        _check_parameters(self)
        return self

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The modules, or the whole model."""
        if not self.modules:
            return (Region(None, self.models, self.slices),)
        return tuple(
            Region(name, module.models, module.slices, module.parameters) for name, module in self.modules.items()
        )

    @property
    def only_models(self) -> list[InputModel] | None:
        """`models`, where they apply to the whole model."""
        return self.regions[0].models if len(self.regions) == 1 else None

    @cached_property
    def expert_references(self) -> list[str]:
        """The experts in the recipe's order: every entry of `models`, or the distinct models of slices and modules."""
        if self.only_models is not None:
            return self.regions[0].references
        return list(dict.fromkeys(reference for region in self.regions for reference in region.references))

    @property
    def base_references(self) -> list[str]:
        """The distinct base models: `base_model`, and those that slices have instead."""
        slices = [part for region in self.regions for part in region.slices or ()]
        found = [self.base_model, *(part.base_model for part in slices)]
        return list(dict.fromkeys(reference for reference in found if reference is not None))

    @property
    def ineffective_parameters(self) -> list[str]:
        """One warning for each parameter that another method of mergekit has and that has no effect here."""
        return describe_ineffective(
            (place, name, method.name)
            for place, parameters, method, _ in _scopes(self)
            for name in parameters or ()
            if name not in _names(method) and has_no_effect(name, method)
        )

    @property
    def vocabulary_source(self) -> str | None:
        """`tokenizer_source`, or the source in mergekit's long form `tokenizer`."""
        return self.tokenizer.source if self.tokenizer is not None else self.tokenizer_source

    @property
    def arithmetic_dtype(self) -> Literal["float32", "float64"]:
        """Dtype of the computation."""
        return self.arithmetic or ("float64" if self.dtype == "float64" else "float32")

    def canonical(self) -> dict[str, Any]:
        """Return the recipe as JSON data, without defaults, credentials, store, runner and memory limit."""
        hidden = {"storage_options", "store", "runner", "max_memory"}
        data = self.model_dump(mode="json", exclude=hidden, exclude_defaults=True)
        return json.loads(json.dumps(data, sort_keys=True))


def _check_parameters(recipe: Recipe) -> None:
    """Check the name and values of every parameter against the pydantic model of its method."""
    faults = [
        fault
        for place, parameters, method, shared in _scopes(recipe)
        for fault in _scope_faults(parameters, place, method, shared=shared)
    ]
    if faults:
        raise faults_error(faults)
    method = _get_method(recipe.merge_method, "merge_method")
    if recipe.calibration is not None and not isinstance(method, SpectralMethod) and not recipe.base_references:
        raise RecipeError(
            f"calibration: svc calibrates what a merge adds to base_model, and {method.name} has none here; set"
            " base_model or remove calibration"
        )


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Any] | None, AnyMethod, bool]]:
    """Yield (place, parameters, method, whether they apply to all experts) for every `parameters` of the recipe."""
    method = _get_method(recipe.merge_method, "merge_method")
    yield "parameters", recipe.parameters, method, True
    for region in recipe.regions:
        yield f"{region.place}parameters", region.parameters, method, True
        for index, item in enumerate(region.models or ()):
            yield f"{region.place}models[{index}].parameters", item.parameters, method, False
        for index, part in enumerate(region.slices or ()):
            place = f"{region.place}slices[{index}]"
            yield f"{place}.parameters", part.parameters, method, True
            for number, source in enumerate(part.sources):
                yield f"{place}.sources[{number}].parameters", source.parameters, method, False
    for index, rule in enumerate(recipe.rules):
        ruled = _get_method(rule.method, f"rules[{index}].method") if rule.method else method
        yield f"rules[{index}].parameters", rule.parameters, ruled, True


def _names(method: AnyMethod) -> frozenset[str]:
    return frozenset({*type_adapters(method.Parameters), *type_adapters(method.Expert)})


def _get_method(name: str, place: str) -> AnyMethod:
    try:
        return get_method(name)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from None


def _scope_faults(
    parameters: Mapping[str, Any] | None, place: str, method: AnyMethod, *, shared: bool
) -> Iterator[str]:
    """Yield a line for every parameter that the method does not have, or whose value it refuses."""
    global_, per_expert = type_adapters(method.Parameters), type_adapters(method.Expert)
    for name, raw in (parameters or {}).items():
        adapter = per_expert.get(name) or (global_.get(name) if shared else None)
        if adapter is None:
            if name in global_:
                yield f"{place}.{name}: applies to the whole merge; move it to the global parameters"
            elif not has_no_effect(name, method):  # reported by `ineffective_parameters`
                known = {**global_, **per_expert} if shared else per_expert
                yield f"{place}.{name}: {method.name} has no such parameter{suggestion(name, known)}"
            continue
        try:
            check_values(parse_setting(raw), adapter)
        except ValueError as error:
            yield f"{place}.{name}: {error}"


def recipe_from_mapping(data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Return the validated recipe of a mapping.

    Parameters
    ----------
    origin : str
        Where the mapping comes from, for error messages.

    Raises
    ------
    RecipeError : one line with the key, what was expected and what was found
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        faults = find_faults(Recipe, data, error, _format_error)
        raise RecipeError(f"{origin}: {join_faults(faults)}") from None


# What pydantic's error types expect, in the words of YAML.
_EXPECTED = {
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
}


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _format_error(item: Any) -> str:
    place = ""
    for part in item["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        message = "is missing"
    elif item["input"] is None:
        message = f"has no value; expected {_EXPECTED.get(item['type'], 'one')}"
    elif item["type"] == "too_short" and not item["input"]:
        message = "is empty; expected at least one entry"
    elif not item["type"].startswith("value_error") and item["loc"]:
        if item["type"] in _EXPECTED:
            message = f"expected {_EXPECTED[item['type']]}"
        if item["loc"][0] != "storage_options":  # may hold credentials
            message += f", found {_shortened(item['input'])}"
    return " ".join((f"{place}: {message}" if place else message).split())
