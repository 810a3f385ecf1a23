"""Options of mergekit's command line, and what to write instead: `mergekit-yaml recipe.yml out --cuda` and others."""

from __future__ import annotations

_IS_DEFAULT = "needs no option here"
_NO_CODE = "models are read from safetensors files, and no code of a model is ever run"

# What to do instead of each option of mergekit's `MergeOptions`, by its name without the dashes.
_INSTEAD = {
    "cuda": "write --device cuda",
    "no-cuda": "write --device cpu, the default",
    "gpu-rich": "write --device cuda; results are written shard by shard",
    "read-to-gpu": "write --device cuda; results are written shard by shard",
    "multi-gpu": "write --device cuda, which uses all GPUs of the machine",
    "low-cpu-memory": "write --max-memory 16GB with the memory that a merge may use",
    "out-shard-size": "write `output: {max_shard_size: 5GB}` into the recipe; the size is in bytes, not in parameters",
    "random-seed": "write `seed: 1` into the recipe",
    "allow-crimes": "write --allow-mixed-architectures with `merge` or `plan`",
    "no-allow-crimes": _IS_DEFAULT,
    "copy-tokenizer": "the tokenizer is always copied; `tokenizer_source` of the recipe chooses the model",
    "no-copy-tokenizer": "the tokenizer is always copied; remove its files from the output",
    "clone-tensors": f"{_IS_DEFAULT}: repeated layers are stored as tensors of their own",
    "trust-remote-code": f"{_IS_DEFAULT}: {_NO_CODE}",
    "lazy-unpickle": f"{_IS_DEFAULT}: {_NO_CODE}",
    "lazy-loader": f"{_IS_DEFAULT}: tensors are read one by one",
    "transformers-cache": "set HF_HOME, where the Hub's client keeps downloads",
    "lora-merge-cache": f"{_IS_DEFAULT}: adapters are merged from their factors",
    "lora-merge-dtype": f"{_IS_DEFAULT}: adapters are merged from their factors, in float32 or better",
    "write-model-card": f"{_IS_DEFAULT}: a model card is always written",
    "no-write-model-card": "a model card is always written; remove README.md from the output",
    "safe-serialization": f"{_IS_DEFAULT}: only safetensors files are written",
    "num-threads": "write --workers 4 with the number of shards to compute at the same time",
    "threads": "write --workers 4 with the number of shards to compute at the same time",
    "async-write": f"{_IS_DEFAULT}: finished shards are written while others are computed",
    "write-threads": f"{_IS_DEFAULT}: finished shards are written while others are computed",
}


def mergekit_hint(message: str, arguments: list[str]) -> str:
    """Return what to write instead of an option of mergekit, to append to an error; "" where there is none.

    Parameters
    ----------
    message : of a usage error, which names the option that is not known
    arguments : of the command line
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and f"No such option: {name} " in f"{message} ":
            instead = _INSTEAD.get(name[2:].replace("_", "-"))
            return f"{name} is an option of mergekit: {instead}" if instead is not None else ""
    return ""
