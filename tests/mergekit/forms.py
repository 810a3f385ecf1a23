"""The forms of recipes that mergekit's README, docs and examples, and model cards on the Hub use, on tiny models.

Written for these tests, after the forms and not the texts of public recipes. {base}, {a}, {b}, {c} are fine-tunes of one
Llama and their base, {lora} an adapter, {t5} and {t5b} encoder-decoder models, {vlm} and {vlmb} vision-language models,
{chatml} has more tokens than the others.
"""

# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One form.

    refused : a part of the error; None for a recipe that runs
    warns : a part of a warning
    """

    topic: str
    name: str
    text: str
    refused: str | None = None
    warns: str | None = None


def _method(name: str, parameters: str, own: str = "", base: bool = True, models: str = "abc", **keys: str) -> Form:
    """Return the usual form of a method: models with their parameters, global parameters and a dtype."""
    entries = "".join(f"  - model: {{{model}}}\n{f'    parameters: {own}{chr(10)}' if own else ''}" for model in models)
    text = f"models:\n{entries}merge_method: {name}\n"
    text += "base_model: {base}\n" if base else ""
    text += f"parameters: {parameters}\n" if parameters else ""
    return Form("methods", name, text + "dtype: bfloat16\n", **keys)


_SLICES = (
    "slices:\n  - sources:\n      - {model: {a}, layer_range: [0, 3]}\n      - {model: {b}, layer_range: [0, 3]}\n"
)

FORMS = (
    _method("linear", "", "{weight: 0.3}", base=False),
    _method("linear", "{weight: 0.5, normalize: true}", models="ab", warns="base_model is averaged too"),
    _method("slerp", "{t: 0.4}", models="a"),
    _method("nuslerp", "{nuslerp_flatten: false, nuslerp_row_wise: true}", "{weight: 0.5}", base=False, models="ab"),
    _method("nuslerp", "", "{weight: 0.5}", models="ab"),
    _method("multislerp", "{normalize_weights: true, eps: 1e-8}", "{weight: 0.5}", base=False),
    _method("multislerp", "", "{weight: 0.5}"),
    _method("karcher", "{max_iter: 1000, tol: 1e-9}", base=False),
    _method("karcher", "{max_iter: 20000, tol: 1.0e-12}", warns="base_model is averaged too"),
    _method("passthrough", "", base=False, models="a"),
    _method("task_arithmetic", "{normalize: false, lambda: 0.8}", "{weight: 0.3}"),
    _method("ties", "{normalize: true, int8_mask: true}", "{density: 0.5, weight: 0.5}"),
    _method("dare_ties", "{int8_mask: true}", "{density: 0.53, weight: 0.4}"),
    _method("dare_linear", "{rescale: true, normalize: 1.0}", "{density: 0.53, weight: 0.4}"),
    _method("della", "{epsilon: 0.05, lambda: 1.0}", "{density: 0.5, weight: 0.5, epsilon: 0.1}"),
    _method("della_linear", "{lambda: 1.1, int8_mask: 1}", "{density: 0.5, weight: 0.5}"),
    _method("breadcrumbs", "", "{density: 0.9, gamma: 0.01, weight: 0.5}"),
    _method("breadcrumbs_ties", "", "{density: 0.9, gamma: 0.01, weight: 0.5}"),
    _method("model_stock", "{filter_wise: false}"),
    _method("nearswap", "{t: 1.0e-4}", models="a"),
    _method("arcee_fusion", "", models="a"),
    _method("sce", "{select_topk: 0.1, int8_mask: true}"),
    _method("ram", "{epsilon: 1.0e-5}"),
    _method("ramplus_tl", "{r: 0.1, alpha: 0.2}"),
    _method("cabs", "", "{weight: 0.6}", refused="unknown merge method 'cabs'"),
    Form("models", "the base listed among the models", "merge_method: ties\nbase_model: {base}\nmodels:\n  - model: {base}\n  - model: {a}\n    parameters: {density: 0.5, weight: 1}\n  - {model: {b}, parameters: {weight: 0.5}}\n", warns="the base is listed"),
    Form("models", "models without parameters, as a list of names", "merge_method: model_stock\nbase_model: {base}\nmodels: [{a}, {b}]\ndtype: float16\n"),
    Form("models", "slerp with both models listed", "merge_method: slerp\nbase_model: {a}\nmodels:\n  - model: {a}\n  - model: {b}\nparameters:\n  t:\n    - value: [0, 0.2, 0.4]\n"),
    Form("models", "a LoRA on a model", "merge_method: linear\nmodels:\n  - {model: '{base}+{lora}', parameters: {weight: 1}}\n  - {model: {a}, parameters: {weight: 0.5}}\n"),
    Form("models", "a LoRA merged into its model by passthrough", "models:\n  - model: {base}+{lora}\nmerge_method: passthrough\nbase_model: {base}\ndtype: bfloat16\n"),
    Form("models", "a LoRA on the base", "merge_method: task_arithmetic\nbase_model: {base}+{lora}\nmodels:\n  - {model: {a}, parameters: {weight: 0.5}}\n  - {model: {b}, parameters: {weight: 0.5}}\n"),
    Form("models", "a LoRA on the base and on the experts", "merge_method: ties\nbase_model: {base}+{lora}\nmodels:\n  - {model: '{a}+{lora}', parameters: {weight: 0.5}}\n  - {model: '{base}+{lora}'}\n"),
    Form("models", "model objects", "merge_method: ties\nbase_model: {model: {path: {base}, revision: null}}\nmodels:\n  - model: {model: {path: {a}}, lora: null, override_architecture: null}\n    parameters: {weight: 1}\n  - model: {path: {b}}\n"),
    Form("models", "a model object with a LoRA", "merge_method: linear\nmodels:\n  - model: {model: {path: {base}}, lora: {path: {lora}}}\n    parameters: {weight: 1}\n"),
    Form("models", "override_architecture", "merge_method: linear\nmodels:\n  - model: {model: {path: {a}}, override_architecture: MistralForCausalLM}\n    parameters: {weight: 1}\n", refused="override_architecture"),
    Form("models", "a revision of a local path", "merge_method: linear\nmodels: [{a}@main]\n", refused="only models on the Hub have revisions"),
    Form("models", "one model twice", "merge_method: linear\nmodels:\n  - {model: {a}, parameters: {weight: [0, 1]}}\n  - {model: {a}, parameters: {weight: [1, 0]}}\n", warns="identical experts"),
    Form("slices", "a stack of layers", "slices:\n  - sources:\n    - {model: {a}, layer_range: [0, 2]}\n  - sources:\n    - {model: {b}, layer_range: [1, 3]}\nmerge_method: passthrough\ndtype: float16\n"),
    Form("slices", "one model with itself", "slices:\n  - sources: [{model: {a}, layer_range: [0, 2]}]\n  - sources: [{model: {a}, layer_range: [1, 2]}]\n  - sources: [{model: {a}, layer_range: [1, 3]}]\nmerge_method: passthrough\n"),
    Form("slices", "scaled projections in repeated layers", "slices:\n  - sources: [{model: {a}, layer_range: [0, 2]}]\n  - sources:\n    - model: {a}\n      layer_range: [1, 3]\n      parameters:\n        scale:\n          - {filter: o_proj, value: 0.0}\n          - {filter: down_proj, value: 0.0}\n          - {value: 1.0}\nmerge_method: passthrough\n"),
    Form("slices", "slerp by filters", _SLICES + "merge_method: slerp\nbase_model: {a}\nparameters:\n  t:\n    - filter: self_attn\n      value: [0, 0.5, 0.3, 0.7, 1]\n    - filter: mlp\n      value: [1, 0.5, 0.7, 0.3, 0]\n    - value: 0.5 # fallback\n  embed_slerp: true\ndtype: bfloat16\n", warns="embed_slerp has no effect"),
    Form("slices", "slerp with a filter for a tied head", _SLICES + "merge_method: slerp\nbase_model: {a}\nparameters:\n  t:\n    - {filter: lm_head, value: [0.55]}\n    - {filter: embed_tokens, value: [0.7]}\n    - {filter: layernorm, value: [0.2, 0.6]}\n    - {filter: model.norm, value: 0.5}\n    - 0.5\n", refused="mixes plain values"),
    Form("slices", "ties in slices", _SLICES.replace("{b}, layer_range: [0, 3]}", "{b}, layer_range: [0, 3], parameters: {density: 0.4, weight: [0, 1]}}") + "merge_method: ties\nbase_model: {base}\nparameters: {normalize: true, density: 0.5, weight: 0.3}\n"),
    Form("slices", "a base in each slice", _SLICES.replace("slices:\n", "slices:\n  - sources: [{model: {a}, layer_range: [0, 1]}, {model: {b}, layer_range: [0, 1]}]\n    base_model: {a}\n").replace("[0, 3]", "[1, 3]") + "    base_model: {b}\nmerge_method: slerp\nparameters: {t: 0.5}\n"),
    Form("slices", "another base in one slice", "slices:\n  - sources: [{model: {a}, layer_range: [0, 2]}, {model: {b}, layer_range: [0, 2]}]\n    base_model: {c}\n  - sources: [{model: {a}, layer_range: [2, 3]}]\nmerge_method: task_arithmetic\nbase_model: {base}\nparameters: {weight: 0.5}\n"),
    Form("slices", "parameters of a slice", "slices:\n  - sources: [{model: {a}, layer_range: [0, 2]}, {model: {b}, layer_range: [0, 2]}]\n    parameters: {weight: 0.2}\n  - sources: [{model: {a}, layer_range: [2, 3]}, {model: {b}, layer_range: [2, 3]}]\n    parameters: {weight: 0.9}\nmerge_method: linear\n"),
    Form("slices", "residual_weight", "slices:\n  - sources: [{model: {a}, layer_range: [0, 3]}]\n    residual_weight: 0.5\nmerge_method: passthrough\n", refused="residual_weight"),
    Form("slices", "more layers than the model has", "slices:\n  - sources: [{model: {a}, layer_range: [0, 40]}]\nmerge_method: passthrough\n", refused="layer_range: is [0, 40]"),
    Form("modules", "the only module", "modules:\n  default:\n    slices:\n      - sources: [{model: {a}, layer_range: [0, 3]}]\nmerge_method: passthrough\n"),
    Form("modules", "encoder and decoder", "merge_method: linear\nmodules:\n  encoder:\n    models: [{model: {t5}, parameters: {weight: 0.8}}, {model: {t5b}, parameters: {weight: 0.2}}]\n  decoder:\n    models: [{model: {t5}, parameters: {weight: 0.3}}, {model: {t5b}, parameters: {weight: 0.7}}]\n  shared:\n    models: [{model: {t5}}, {model: {t5b}}]\n"),
    Form("modules", "slices of the decoder", "merge_method: passthrough\nmodules:\n  encoder: {models: [{t5}]}\n  decoder:\n    slices:\n      - sources: [{model: {t5}, layer_range: [0, 1]}]\n      - sources: [{model: {t5b}, layer_range: [1, 2]}]\n"),
    Form("modules", "text and vision", "merge_method: ties\nbase_model: {vlm}\nmodules:\n  text_decoder:\n    models: [{model: {vlmb}, parameters: {weight: 1, density: 0.5}}]\n  vision_tower:\n    models: [{model: {vlmb}, parameters: {weight: 0}}]\n  multi_modal_projector:\n    models: [{vlmb}]\n"),
    Form("modules", "a module is not listed", "merge_method: linear\nmodules:\n  text_decoder: {models: [{vlm}, {vlmb}]}\n", refused="which the recipe does not list"),
    Form("modules", "a module that the model does not have", "merge_method: linear\nmodules:\n  default: {models: [{a}, {b}]}\n  vision_tower: {models: [{a}]}\n", refused="modules.vision_tower: no tensor"),
    Form("tokenizer", "tokenizer_source: base", "merge_method: linear\nbase_model: {base}\nmodels: [{a}, {chatml}]\ntokenizer_source: base\n"),
    Form("tokenizer", "tokenizer_source: union", "merge_method: linear\nmodels: [{a}, {chatml}]\ntokenizer_source: union\n"),
    Form("tokenizer", "tokenizer_source: a model", "merge_method: linear\nmodels: [{a}, {chatml}]\ntokenizer_source: {chatml}\n"),
    Form("tokenizer", "tokenizer_source of earlier versions", "merge_method: linear\nmodels: [{a}, {chatml}]\ntokenizer_source: model:{chatml}\n"),
    Form("tokenizer", "tokenizer with a source", "merge_method: linear\nmodels: [{a}, {chatml}]\ntokenizer: {source: union}\n"),
    Form("chat template", "auto", "merge_method: linear\nmodels: [{a}, {b}, {c}]\nchat_template: auto\n"),
    *(Form("chat template", name, f"merge_method: linear\nmodels: [{{a}}, {{b}}]\nchat_template: {name}\n") for name in ("alpaca", "chatml", "llama3", "mistral", "exaone")),
    Form("chat template", "Jinja", 'merge_method: linear\nmodels: [{a}, {b}]\nchat_template: "{% for m in messages %}{{ m[\'content\'] }}{% endfor %}"\n'),
    Form("chat template", "an unknown name", "merge_method: linear\nmodels: [{a}]\nchat_template: vicuna\n", refused="chat_template: 'vicuna' is unknown"),
    Form("parameters", "of another method", "merge_method: model_stock\nbase_model: {base}\nmodels:\n  - {model: {a}, parameters: {weight: 0.5, density: 0.5}}\n  - {model: {b}, parameters: {weight: 0.5}}\nparameters: {normalize: true, int8_mask: true}\n", warns="weight has no effect on model_stock"),
    Form("parameters", "of ties on slerp", _SLICES + "merge_method: slerp\nbase_model: {a}\nparameters: {t: 0.5, normalize: true, rescale: true}\n", warns="rescale has no effect on slerp"),
    Form("parameters", "misspelled", "merge_method: ties\nbase_model: {base}\nmodels: [{model: {a}, parameters: {wieght: 0.5}}]\n", refused="did you mean 'weight'"),
    Form("parameters", "gradients with filters", "merge_method: dare_ties\nbase_model: {base}\nmodels:\n  - model: {a}\n    parameters:\n      density: [1, 0.7, 0.1]\n      weight:\n        - filter: mlp\n          value: [0, 0.5, 1]\n        - filter: '*'\n          value: 0.2\n  - model: {b}\n    parameters: {density: 0.33, weight: {filter: self_attn, value: 1}}\nparameters: {normalize: true}\n"),
    Form("parameters", "scientific notation as YAML reads it", "merge_method: nearswap\nbase_model: {base}\nmodels: [{a}]\nparameters: {t: [1e-5, 1e-3]}\n"),
    Form("parameters", "a filter that no tensor has", "merge_method: slerp\nbase_model: {base}\nmodels: [{a}]\nparameters: {t: [{filter: atn, value: 1}, {value: 0.5}]}\n", refused="filter 'atn' is in no tensor name"),
    Form("documents", "named results in a chain", "name: first\nmerge_method: linear\nmodels: [{a}, {b}]\nparameters: {weight: 0.5}\n---\nname: second\nmerge_method: slerp\nbase_model: first\nmodels: [{c}]\nparameters: {t: 0.5}\n---\nmerge_method: dare_ties\nbase_model: {base}\nmodels:\n  - {model: second, parameters: {density: 0.6, weight: 0.5}}\n  - {model: {c}, parameters: {density: 0.8, weight: 0.5}}\n"),
    Form("documents", "in another order, with a LoRA on a result", "merge_method: ties\nbase_model: {base}\nmodels: [{model: stock+{lora}}, {model: {a}}]\n---\nname: stock\nmerge_method: model_stock\nbase_model: {base}\nmodels: [{a}, {b}]\n"),
    Form("documents", "results in slices and as tokenizer", "name: x\nmerge_method: linear\nmodels: [{a}, {chatml}]\ntokenizer_source: union\n---\nname: y\nslices:\n  - sources: [{model: x, layer_range: [0, 2]}]\n  - sources: [{model: x, layer_range: [1, 3]}]\nmerge_method: passthrough\ntokenizer_source: x\n"),
    Form("documents", "named by out_path", _SLICES + "merge_method: slerp\nbase_model: {a}\nparameters: {t: 0.5}\nout_path: ./models/gradient\n---\nmodels: [{model: ./models/gradient}, {model: {c}}]\nmerge_method: ties\nbase_model: {base}\nout_path: ./models/final\n"),
    Form("documents", "a name in a single document", "name: my-merge\nmerge_method: linear\nmodels: [{a}, {b}]\n"),
    Form("documents", "a circle", "name: x\nmerge_method: linear\nmodels: [y]\n---\nname: y\nmerge_method: linear\nmodels: [x]\n", refused="in a circle: x -> y -> x"),
    Form("documents", "two without a name", "merge_method: linear\nmodels: [{a}]\n---\nmerge_method: linear\nmodels: [{b}]\n", refused="2 documents have no name"),
    Form("other keys", "random_seed", "merge_method: dare_ties\nbase_model: {base}\nmodels: [{a}, {b}]\nparameters: {density: 0.5}\nrandom_seed: 42\n"),
    Form("other keys", "dtype and out_dtype", "merge_method: linear\nmodels: [{a}, {b}]\ndtype: float32\nout_dtype: bfloat16\n"),
    Form("other keys", "an unknown key", "merge_method: linear\nmodels: [{a}]\nmodel_name: x\n", refused="unknown key 'model_name'"),
    Form("other keys", "a mixture of dense models (mergekit-moe)", "base_model: {base}\ngate_mode: hidden\nexperts:\n  - source_model: {a}\n    positive_prompts: [code]\n", refused="is a key of mergekit-moe"),
)  # fmt: skip
