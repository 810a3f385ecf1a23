"""Find the adapter in a directory: its weights, and the other weight files there, which are not part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import CheckpointError
from ...formats.file_names import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, INDEX_NAME, WEIGHTS_NAME
from .folder import SHARD_NAME, CheckpointFolder, is_pickle, pickle_error

_MLX_WEIGHTS_NAME = "adapters.safetensors"
_PICKLED_WEIGHTS_NAME = "adapter_model.bin"
_MLX_ARRAYS_NAME = "adapters.npz"
# Pickles with trained weights that are not in the adapter (LLaVA): without them the expert is another model.
_PICKLED_PARTS = re.compile(r"non_lora_\w+\.bin")
# State of a training run: nothing of the model.
_TRAINING_STATE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state|sampler)[\w.-]*"
    r"|\d+_adapters\.safetensors"
)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The files of an adapter.

    weights : file name of the weights
    unused : names of the other weight files in the directory (a value head, new embeddings), without training state
    """

    weights: str
    unused: tuple[str, ...]


def find_adapter(folder: CheckpointFolder) -> AdapterFiles | None:
    """Return the adapter of a directory, None where it holds a full model or nothing.

    A directory with adapter_config.json and the weights of an adapter is an adapter, whatever else lies there. As in
    PEFT, nothing else belongs to it.

    Raises
    ------
    CheckpointError : an adapter beside a full model, pickled weights, or adapter_config.json without any weights
    """
    if ADAPTER_CONFIG_NAME not in folder.files:
        return None
    stored = [name for name in (ADAPTER_WEIGHTS_NAME, _MLX_WEIGHTS_NAME) if name in folder.files]
    if folder.only_file is not None:
        return AdapterFiles(folder.only_file, ()) if folder.only_file in stored else None
    full = next((name for name in sorted(folder.files) if _belongs_to_full_model(name)), None)
    if full is not None and stored:
        advice = f"; or move {ADAPTER_CONFIG_NAME} and {stored[0]} away to use the model"
        if full in (WEIGHTS_NAME, INDEX_NAME):
            advice = f" or {folder.display(full)}"
        raise CheckpointError(
            f"{folder.display('')} has a full model ({full}) and an adapter ({stored[0]}), expected one of them; name"
            f" the file to use: {folder.display(stored[0])}{advice}"
        )
    if full is not None:
        return None
    if len(stored) > 1:
        raise CheckpointError(
            f"{folder.display('')} has two adapters, {' and '.join(stored)}; name the file to use:"
            f" {folder.display(stored[0])}"
        )
    if not stored:
        if _PICKLED_WEIGHTS_NAME in folder.files:
            raise pickle_error(folder, _PICKLED_WEIGHTS_NAME)
        found = f" ({_MLX_ARRAYS_NAME} is not read: save the arrays as safetensors)"
        raise CheckpointError(
            f"{folder.display('')} has {ADAPTER_CONFIG_NAME} and no {ADAPTER_WEIGHTS_NAME}"
            f"{found if _MLX_ARRAYS_NAME in folder.files else ''}; download or save the adapter again"
        )
    for name in folder.files:
        if _PICKLED_PARTS.fullmatch(name):
            raise CheckpointError(
                f"{folder.display(name)} is a pickle with weights that belong to the adapter beside it; merge the"
                " adapter into its base first and give the full model as expert"
            )
    others = sorted(
        name
        for name in folder.files
        if (name.endswith(".safetensors") or is_pickle(name))
        and name not in (stored[0], _PICKLED_WEIGHTS_NAME)
        and not _TRAINING_STATE.fullmatch(name)
    )
    return AdapterFiles(stored[0], tuple(others))


def _belongs_to_full_model(name: str) -> bool:
    return name in (WEIGHTS_NAME, INDEX_NAME) or SHARD_NAME.fullmatch(name) is not None
