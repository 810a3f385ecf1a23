"""The page of a merge in headless Chromium: its text, charts, no error, no overflow, hostile names as text."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from eigenmerge.core.steps.reporting.page import report_page

from ...core.steps.reporting.examples import HOSTILE, curve, expert, layer, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
# Posted by the page that is tested to the one around it, which has its width.
MEASURE = """<script>addEventListener("load", () => setTimeout(() => parent.postMessage([innerWidth,
document.documentElement.scrollWidth, document.querySelectorAll("svg").length, document.title,
matchMedia("(prefers-color-scheme: dark)").matches, getComputedStyle(document.body).backgroundColor,
performance.getEntriesByType("resource").length, document.body.innerText].map(String), "*"), 300));</script></body>"""
AROUND = """<body style="margin:0"><iframe src="page.html" style="width:{width}px;height:800px;border:0"></iframe>
<pre></pre><script>addEventListener("message",
event => document.querySelector("pre").textContent = event.data.join("\\n"))</script>"""


def shown(page: str, folder: Path, width: int, *, dark: bool) -> list[str]:
    """Return what the page measured of itself, after a check that it logged nothing: no error, no refused request."""
    assert CHROMIUM is not None
    (folder / "page.html").write_text(page.replace("</body>", MEASURE))
    (folder / "around.html").write_text(AROUND.format(width=width))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [CHROMIUM, *QUIET, *scheme, f"--user-data-dir={folder}/profile", f"--window-size={max(width, 600)},800"]
    command += ["--virtual-time-budget=2000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{folder}/around.html"], capture_output=True, text=True, timeout=60, check=True
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found is not None
    return unescape(found[1]).split("\n")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["laptop, light", "phone, dark"])
def test_the_page_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    layers = [
        layer(f"model.layers.{n}.{row}.weight", depth=n, row=row, kind=kind, curves=(curve(floor=-6.0),))
        for n in range(4)
        for row, kind in (("self_attn.q_proj", "query"), ("mlp.down_proj", "down"))
    ]
    made = report(
        layer(HOSTILE, notes=(HOSTILE,), why=HOSTILE, row=HOSTILE),
        *layers,
        title=HOSTILE,
        experts=(expert(HOSTILE, share=0.9, interference=0.2), expert("code", share=0.1, interference=0.3)),
        overlap=[[1.0, -0.3], [-0.3, 1.0]],
        recipe={"merge_method": HOSTILE},
    )
    inner, scroll, charts, title, is_dark, background, requests, *text = shown(
        report_page(made), tmp_path, width, dark=dark
    )
    assert int(inner) == width and int(scroll) <= width  # wide tables scroll in their own boxes
    # overlap, four charts over the layers, two heat maps, the legend of one whose values differ, two charts of a layer
    assert int(charts) == 10 and requests == "0"
    assert title.startswith("</script><img") and "taken" not in title.replace(HOSTILE.partition("\x1b")[0], "")
    assert is_dark == str(dark).lower() and (background == "rgb(255, 255, 255)") != dark
    words = "\n".join(text)
    for expected in ("Warnings", "conflict", "Experts", "code", "self_attn.q_proj", "Spectrum: eigenvalue / largest"):
        assert expected in words
    assert words.count("onerror=document.title='taken'") >= 4
