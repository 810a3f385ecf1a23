"""`eigenmerge deploy` and `eigenmerge announce`: create deployments on a Prefect server, and start the nightly one."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ....core.errors import DeployError
from ...dead_runs import DEAD_AFTER_SECONDS
from ...deploy import DeployOptions, Target
from ...deploy import deploy as apply
from ...prefect_settings import quiet_prefect
from ..options import check_addresses
from ..terminal import show

ApiOption = Annotated[
    str | None,
    typer.Option(
        "--api-url",
        envvar="PREFECT_API_URL",
        metavar="URL",
        help="API of the Prefect server, such as http://host:4200/api.",
    ),
]


def deploy(
    target: Annotated[Target, typer.Argument(metavar="TARGET", help="process, kubernetes or ecs.", show_default=False)],
    store: Annotated[
        str,
        typer.Option("--store", envvar="EIGENMERGE_STORE", metavar="URI", help="Store that all workers can reach."),
    ],
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE:TAG", help="Versioned image, for kubernetes and ecs.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Recipe of the nightly merge, without experts.")
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option("--registry", metavar="URI", help="Prefix with one folder per expert, for the nightly merge."),
    ] = None,
    publish: Annotated[
        str | None, typer.Option("--publish", metavar="URI", help="Prefix that receives the nightly merges.")
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=1, metavar="N", help="Nightly merges to keep. Default: all."),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="NAME", help="Work pool. Default: eigenmerge-TARGET.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Runs of the pool at the same time. Default: 1.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="CRON", help="Schedule of the nightly merge, in UTC.")
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Job variable of the pool, such as gpus=8. Repeatable."),
    ] = None,
    update_pool: Annotated[
        bool, typer.Option("--update-pool", help="Replace the job template of an existing pool.")
    ] = False,
    dead_after: Annotated[
        int,
        typer.Option(
            "--dead-after", metavar="SECONDS", help="The server ends a run that has sent no heartbeat for this long."
        ),
    ] = DEAD_AFTER_SECONDS,
    api_url: ApiOption = None,
) -> None:
    """Create or update the work pool and the deployments of TARGET on a Prefect server, and print the next steps."""
    quiet_prefect()
    check_addresses(store=store, recipe=recipe, registry=registry, publish=publish)
    options = DeployOptions(
        store=store,
        image=image,
        recipe=recipe,
        registry=registry,
        publish=publish,
        keep=keep,
        pool=pool,
        limit=limit,
        cron=cron,
        job_variables=parse_variables(variables or []),
        update_pool=update_pool,
        dead_after=dead_after,
    )
    show(*apply(target, options, api_url=_require_api_url(api_url)).split("\n"))


def announce(
    registry: Annotated[
        str, typer.Argument(metavar="REGISTRY", help="The text given to `deploy --registry`.", show_default=False)
    ],
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="Name of its folder.", show_default=False)],
    api_url: ApiOption = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Do not look into REGISTRY, which this machine cannot read.")
    ] = False,
) -> None:
    """Start the nightly merge after EXPERT was added to REGISTRY: now, or when the run in progress has ended."""
    quiet_prefect()
    url = _require_api_url(api_url)
    check_addresses(REGISTRY=registry)
    from ...announce import announce_expert, check_registered

    if not unchecked:
        check_registered(registry, expert)
    announce_expert(registry, expert, api_url=url)
    show(f"announced {expert} in {registry}")


def parse_variables(pairs: list[str]) -> dict[str, Any]:
    """Return {"gpus": 8} for ["gpus=8"]. A value that is not JSON is text.

    Raises
    ------
    DeployError : not NAME=VALUE
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


def _require_api_url(api_url: str | None) -> str:
    if not api_url:
        raise DeployError("no address of a Prefect server: set --api-url or PREFECT_API_URL")
    return api_url
