"""`eigenmerge deploy`: put the flows on a Prefect server. `eigenmerge announce`: tell it that an expert is there."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any, cast

import typer

from ...core.errors import DeployError
from .options import check_addresses

ApiOption = Annotated[
    str | None,
    typer.Option("--api-url", envvar="PREFECT_API_URL", metavar="URL", help="The Prefect server's API."),
]


def deploy(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="process, kubernetes or ecs.")],
    store: Annotated[str, typer.Option("--store", envvar="EIGENMERGE_STORE", metavar="URI", help="Store of all runs.")],
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE:TAG", help="Versioned image (kubernetes, ecs).")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe of the nightly merge, without experts.")
    ] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", metavar="URI", help="Prefix with one folder per expert.")
    ] = None,
    publish: Annotated[
        str | None, typer.Option("--publish", metavar="URI", help="Prefix that receives the nightly merges.")
    ] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="Work pool; default eigenmerge-TARGET.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Runs of the pool at once, i.e. GPU machines. Default 1.")
    ] = None,
    cron: Annotated[str | None, typer.Option("--cron", help="When the nightly merge runs, UTC.")] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A variable of the pool, e.g. gpus=8 (JSON or text)."),
    ] = None,
    update_pool: Annotated[
        bool, typer.Option("--update-pool", help="Replace the job template of an existing pool by ours.")
    ] = False,
    api_url: ApiOption = None,
) -> None:
    """Make the work pool and the deployments for TARGET on a Prefect server, and say what to run next."""
    from ..deploy import DeployOptions, Target
    from ..deploy import deploy as apply

    if target not in ("process", "kubernetes", "ecs"):
        raise DeployError(f"target {target!r} is unknown; choose process, kubernetes or ecs")
    check_addresses(store=store, recipe=recipe, registry=registry, publish=publish)
    options = DeployOptions(
        store=store,
        image=image,
        recipe=recipe,
        registry=registry,
        publish=publish,
        pool=pool,
        limit=limit,
        cron=cron,
        job_variables=parse_variables(variables or []),
        update_pool=update_pool,
    )
    print(apply(cast(Target, target), options, api_url=_server(api_url)))


def announce(
    registry: Annotated[str, typer.Argument(metavar="REGISTRY", help="As given to `eigenmerge deploy --registry`.")],
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="Its folder's name.")],
    api_url: ApiOption = None,
) -> None:
    """Tell the Prefect server that EXPERT has appeared in REGISTRY: the nightly merge then runs at once."""
    os.environ["PREFECT_API_URL"] = _server(api_url)
    from ..announce import announce_expert

    announce_expert(registry, expert)
    print(f"announced {expert} in {registry}")


def parse_variables(pairs: list[str]) -> dict[str, Any]:
    """{"gpus": 8} of ["gpus=8"]. A value that is JSON is taken as such, any other as text.

    Raises
    ------
    DeployError : no "=" in it
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise DeployError(f"--set {pair!r}: expected NAME=VALUE, such as gpus=8")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _server(api_url: str | None) -> str:
    if not api_url:
        raise DeployError("no Prefect server is named; pass --api-url or set PREFECT_API_URL")
    return api_url
