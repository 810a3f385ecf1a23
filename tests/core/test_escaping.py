"""Text from outside in Markdown and on a terminal: it is shown as it is, and nothing of it becomes active."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.escaping import markdown_block, markdown_code, markdown_name, markdown_text, printable

MARKDOWN = MarkdownIt("commonmark").enable("table").enable("strikethrough")
HARMLESS = {"p", "code", "table", "thead", "tbody", "tr", "td", "th", "pre", "blockquote"}
HOSTILE = [
    "[a](javascript:alert)", "![a](http://x/y.png)", "<img src=x onerror=alert(1)>", "<!-- ", "a|b|c", "`a`", "``", "`",
    "\\", "a\\", "\\`[a](b)`", "# a", "- a", "+ a", "1. a", "2) a", "> a", "---", "===", "***", "__a__", "*a*", "~~a~~",
    "&lt;b&gt;", "a\n# b", "a\r\n\r\n<b>", "\x1b[31mred", "\u202egnp.exe", "a\u2066b\u2069", "```", "~~~", "    a",
    "\ta", "https://evil.example", "www.evil.example", "a@b.example", "[a]: http://x", "[x]", "$a$", "\x00", "\ud800",
    "!`a`[b](c)", "<https://evil.example>", "`https://evil.example`", "a `x` [b](c) `",
]  # fmt: skip
active = st.text(alphabet="ab12 `\\[]()<>|*_~#-+=!&:/@.\n\r\t\x1b\u202e'\"$", max_size=24)


class Page(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(markdown: str) -> Page:
    assert all(char.isprintable() or char == "\n" for char in markdown)
    return Page(MARKDOWN.render(markdown))


@settings(deadline=None, max_examples=150)
@given(active)
def test_a_line_shows_the_text_and_nothing_else(text: str) -> None:
    check_line(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_known_attacks(text: str) -> None:
    check_line(text)


def check_line(text: str) -> None:
    for shown in (markdown_text(text), markdown_code(text), markdown_name(text)):
        assert "\n" not in shown
        for page in (
            page_of(f"start {shown} end"),
            page_of(shown),
            page_of(f"> {shown}"),
            page_of(f"| a | b |\n|---|---|\n| {shown} | last |\n"),
        ):
            assert page.tags <= HARMLESS, (text, shown, page.tags)
        assert [cell.strip() for cell in page.text.split("\n") if cell.strip()][-1] == "last", (text, shown)
        assert "\x1b" not in shown and "\u202e" not in shown
    seen = page_of(f"{markdown_text(text)} end").text.replace("\\x7c", "|")
    assert " ".join(seen.split()) == " ".join(f"{printable(text)} end".split())


@settings(deadline=None, max_examples=100)
@given(active, active)
@example("```", "# a")
@example("a ````` b\n```", "")
def test_a_block_is_ended_by_nothing_inside(text: str, more: str) -> None:
    page = page_of("\n".join(["before", "", *markdown_block(f"{text}\n{more}", "yaml"), "", "after"]))
    assert page.tags <= {"p", "pre", "code"}
    assert page.text.rstrip().endswith("after")


@pytest.mark.parametrize(
    "name", ["org/model", "/tmp/models/my_expert_v1.5", "model.layers.0.mlp.up_proj.weight", "模型"]
)
def test_usual_names_stay_as_they_are(name: str) -> None:
    assert markdown_name(name) == markdown_text(name) == printable(name) == name
    assert markdown_code(name) == f"`{name}`"


def test_prose_stays_as_it_is() -> None:
    text = "org/a: stored in BF16, which rounds the base's values; 3 tensors (2%), the first model.norm_a.weight"
    assert markdown_text(text) == text


def test_messages_of_errors_are_one_printable_line() -> None:
    assert str(CheckpointError("a\x1b[31m\nb\u202ec")) == "a\\x1b[31m b\\u202ec"
