"""The files of a model that its other files name: module folders, chat templates, code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.listing import ModelListing
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.model_files import complete_side_files


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ModelListing]:
    """Write a model with these files, JSON content as mappings or lists, and return its completed listing."""

    def make_one(**files: Any) -> ModelListing:
        save_file({"w": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return complete_side_files(list_model(str(tmp_path)), None)

    return make_one


def test_a_sentence_transformer(make: Any, tmp_path: Path) -> None:
    (tmp_path / "2_Dense").mkdir()
    save_file({"linear.weight": torch.zeros(2, 2)}, tmp_path / "2_Dense/model.safetensors")
    types = ["Transformer", "Pooling", "Dense", "Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    modules = [
        {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    listing = make(
        **{
            "config.json": {},
            "modules.json": modules,
            "sentence_bert_config.json": {},
            "config_sentence_transformers.json": {},
            "1_Pooling/config.json": {},
            "2_Dense/config.json": {},
            "2_Dense/pytorch_model.bin": "",
            "onnx/model.onnx": "",
            "eval/results.json": {},
        }
    )
    expected = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    expected += ["config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"]
    assert sorted(listing.side_files) == expected
    assert any("2_Dense/model.safetensors is copied, not merged" in note for note in listing.notes)
    assert any("2_Dense/pytorch_model.bin does not go with" in note for note in listing.notes)
    assert Path(listing.side_files["1_Pooling/config.json"]).read_text() == "{}"


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "~/x"])
def test_a_module_outside_of_the_model_is_refused(make: Any, path: str) -> None:
    with pytest.raises(CheckpointError, match=r"modules.json: path .* is refused"):
        make(**{"config.json": {}, "modules.json": [{"path": path, "type": "sentence_transformers.models.Pooling"}]})


def test_named_chat_templates(make: Any) -> None:
    listing = make(**{"config.json": {}, "additional_chat_templates/rag.jinja": "x", "chat_template.jinja": "y"})
    assert sorted(listing.side_files) == ["additional_chat_templates/rag.jinja", "chat_template.jinja"]


def test_code_that_auto_map_names_with_what_it_imports(make: Any) -> None:
    configs = {
        "config.json": {
            "auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.X"},
            "text_config": {"auto_map": {"AutoConfig": "other/repo--configuration_y.YConfig"}},
        },
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}},
        "processor_config.json": {"auto_map": {"AutoProcessor": "processing_x.XProcessor"}},
        "modules.json": [{"path": "", "type": "custom_st.Transformer"}],
    }
    code = {
        "configuration_x.py": "import torch",
        "modeling_x.py": "from .configuration_x import XConfig\nfrom .kernels import f",
        "kernels.py": "import torch",
        "tokenization_x.py": "from .bpe_x import g",
        "bpe_x.py": "",
        "custom_st.py": "",
        "setup.py": "raise SystemExit",
    }
    listing = make(**configs, **code)
    named = {name for name in listing.side_files if name.endswith(".py")}
    assert named == set(code) - {"setup.py"}
    assert listing.tokenizer_code == {"tokenization_x.py", "bpe_x.py"}
    assert any("auto_map names processing_x.py, which is not there" in note for note in listing.notes)
    assert any("its code goes with the merged model, unchanged: bpe_x.py, " in note for note in listing.notes)


def test_code_that_nothing_names_stays_behind(make: Any) -> None:
    listing = make(**{"config.json": {"auto_map": {"AutoModel": "other/repo--modeling_x.X"}}, "modeling_x.py": ""})
    assert not listing.side_files and not listing.notes
