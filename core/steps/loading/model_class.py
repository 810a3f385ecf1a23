"""The class of transformers that loads a checkpoint, and transformers itself without its output.

transformers is optional. This is the only file that can let it execute Python files of a model, and only where the user
asked for that.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...errors import one_line
from ...formats.bounded_json import LONGEST_CONFIG_BYTES, parse_json_object
from ...formats.file_names import CONFIG_NAME
from .load_check import NotCheckedError

_OLDEST = 5  # major version: its loading reports and its conversion of mixtures


@dataclass(frozen=True, slots=True)
class ModelClass:
    """A class of transformers and the configuration of one checkpoint.

    model : class, such as LlamaForCausalLM
    config : a PretrainedConfig
    """

    model: Any
    config: Any

    @property
    def name(self) -> str:
        return str(self.model.__name__)

    @property
    def num_tokens(self) -> int | None:
        """Rows of the input embeddings, as config.json states them."""
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        return size if isinstance(size, int) else None

    @property
    def predicts_next_token(self) -> bool:
        """Whether it is a causal language model."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        return self.name.endswith("ForCausalLM") or self.name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def require_transformers(*others: str) -> None:
    """Check that transformers, and other packages, are installed.

    Raises
    ------
    NotCheckedError : one is missing, or transformers is too old
    """
    try:
        found = version("transformers")
        for name in ("accelerate", *others):
            version(name)
    except PackageNotFoundError as error:
        raise NotCheckedError(f"{error.name} is not installed: pip install 'eigenmerge[load]'") from None
    if int(found.partition(".")[0]) < _OLDEST:
        raise NotCheckedError(f"transformers {found} is installed, expected {_OLDEST} or later: pip install -U it")


def find_class(folder: Path, *, run_model_code: bool) -> ModelClass:
    """Return the class that config.json names.

    Parameters
    ----------
    folder : on this machine; its config.json is read
    run_model_code : execute the Python files of the model where transformers has no class of its own for it

    Raises
    ------
    NotCheckedError : transformers does not know the architecture, or only by code of the model
    CheckpointError : config.json is missing or malformed
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise NotCheckedError(f"there is no {CONFIG_NAME}")
    content = parse_json_object(path.read_bytes(), CONFIG_NAME, LONGEST_CONFIG_BYTES, finite=False)
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind, names = content.get("model_type"), content.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if not name:
        raise NotCheckedError(f"{CONFIG_NAME} names no architecture (`architectures`)")
    known = kind in CONFIG_MAPPING_NAMES and getattr(transformers, name, None) is not None
    if known:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return ModelClass(getattr(transformers, name), config)
    if "auto_map" not in content:
        found = f"{name} (model_type {kind!r})"
        raise NotCheckedError(f"transformers {version('transformers')} has no {found}; install a version that has it")
    if not run_model_code:
        raise NotCheckedError(
            f"{name} is code of the model (`auto_map`), which is not executed; pass --trust-remote-code if you trust it"
        )
    return _class_of_model_code(folder, name, content)


def _class_of_model_code(folder: Path, name: str, content: Mapping[str, object]) -> ModelClass:
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    places = content["auto_map"]
    references = [str(one) for one in places.values()] if isinstance(places, Mapping) else []
    reference = next((one for one in references if one.rpartition(".")[2] == name), None)
    if reference is None:
        raise NotCheckedError(f"`auto_map` of {CONFIG_NAME} does not name {name}")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
    return ModelClass(get_class_from_dynamic_module(reference, folder, local_files_only=True), config)


def load_tokenizer(folder: Path, *, run_model_code: bool) -> Any:
    """Return the tokenizer of a folder. Raises what transformers raises."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=run_model_code)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[list[str]]:
    """Collect what transformers would log, instead of printing it; no progress bars, no warnings."""
    from transformers.utils import logging as their_logging

    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("transformers")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    bars = their_logging.is_progress_bar_enabled()
    logger.handlers, logger.propagate = [Collector()], False
    logger.setLevel(logging.WARNING)
    their_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield lines
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        if bars:
            their_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return what another library's exception says, as a short line."""
    text = one_line(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
