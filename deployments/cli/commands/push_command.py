"""`eigenmerge push`: push a finished checkpoint to the Hugging Face Hub; and the options of `merge --push`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import JsonOption, check_places, show_bytes, show_count
from ..terminal import show, show_json

if TYPE_CHECKING:
    from ....core.steps.hub.push_checkpoint import Pushed

PublicOption = Annotated[
    bool, typer.Option("--public", help="The repository is public. Default: private; an existing one must agree.")
]


def push(
    checkpoint: Annotated[
        str, typer.Argument(metavar="OUT", help="Directory or URI of a finished merge.", show_default=False)
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; created if needed.", show_default=False)
    ],
    public: PublicOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace files of an earlier merge that were edited on the Hub.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Recipe that gives `storage_options`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Push the files of a finished merge to the Hugging Face Hub, in one commit. The same command continues a push.

    Log in with `hf auth login`, or set HF_TOKEN. Only a repository that is empty or holds a merge of Eigenmerge is
    written.
    """
    from ....core.steps.read_recipe import read_recipe

    options = read_recipe(recipe).storage_options if recipe is not None else None
    check_places(options, OUT=checkpoint)
    done = push_and_show(checkpoint, repository, options, public=public, overwrite=overwrite, quiet=as_json)
    if as_json:
        show_json(asdict(done), indent=None)


def push_and_show(
    checkpoint: str,
    repository: str,
    options: Mapping[str, Any] | None,
    *,
    public: bool,
    overwrite: bool = False,
    quiet: bool = False,
) -> Pushed:
    """Push a checkpoint and print what is sent and the result; nothing with `quiet`."""
    from huggingface_hub.utils import disable_progress_bars

    from ....core.steps.hub.push_checkpoint import push_checkpoint
    from ....core.storage.store import Store

    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
    on_file: Callable[[str, int], None] | None = None if quiet else _show_file
    done = push_checkpoint(
        Store(checkpoint, options), repository, options, public=public, overwrite=overwrite, on_file=on_file
    )
    if not quiet:
        show(*_result_lines(done))
    return done


def _show_file(name: str, size: int) -> None:
    show(f"sending {name} ({show_bytes(size)})")


def _result_lines(done: Pushed) -> list[str]:
    lines = [f"removed {name}, of the earlier merge" for name in done.removed]
    for name in done.left_out[:1]:
        more = f" and {len(done.left_out) - 1} more" if len(done.left_out) > 1 else ""
        lines.append(f"not pushed, because no part of the merge: {name}{more}")
    if not done.commit_url:
        return [*lines, f"Already there: {done.url} has these files"]
    return [*lines, f"Pushed {show_count(done.num_files, 'file')}, {show_bytes(done.num_bytes)}: {done.url}"]
