"""File names that a web server shows: the links of an index page, or the usual names of a model's files.

Few web servers list folders in a form for programs. Many have an index page (Apache, nginx, Caddy, `python -m
http.server`), others none.
"""

from __future__ import annotations

from collections.abc import Iterable
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from ...formats.file_names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    INDEX_NAME,
    MARKER_NAME,
    TEMPLATE_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
)
from ...formats.object_names import find_key_problem

# What transformers, PEFT and sentence-transformers write, and the pickles that are refused by name.
USUAL_NAMES = (
    *(INDEX_NAME, WEIGHTS_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME, MARKER_NAME),
    *(ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, "adapters.safetensors", "adapter_model.bin"),
    *(TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, "special_tokens_map.json", "added_tokens.json", TEMPLATE_NAME),
    *("chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "source.spm", "target.spm", "tiktoken.model", "tekken.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_MODEL_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".distcp", CONFIG_NAME)


def linked_names(page: str, url: str) -> set[str]:
    """Return the names of the files in the folder at `url` that its index page links to."""
    folder = urlsplit(url).path.rpartition("/")[0] + "/"
    names: set[str] = set()
    for link in _links(page):
        try:
            parts = urlsplit(urljoin(url, link))
        except ValueError:
            continue
        path = unquote(parts.path)
        if parts.query or parts.netloc != urlsplit(url).netloc or not path.startswith(unquote(folder)):
            continue  # another order of the page, another server, another folder
        name = path.removeprefix(unquote(folder))
        if "/" not in name and find_key_problem(name) is None:
            names.add(name)
    return names


def shows_model(names: Iterable[str]) -> bool:
    """Return whether an index page shows files of a model: then it is a listing, and not some other page."""
    return any(name.endswith(_MODEL_FILES) for name in names)


def _links(page: str) -> list[str]:
    parser = _LinkParser()
    parser.feed(page)
    return parser.links


class _LinkParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value.strip() for name, value in attrs if name == "href" and value]
