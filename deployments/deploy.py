"""Create the work pool and the deployments of prefect.yaml on a Prefect server.

A second call changes only what its options request. An existing pool keeps its job template, which its operator may
have edited, unless `update_pool` is set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, cast

from ..core.errors import DeployError, suggestion
from .dead_runs import DEAD_AFTER_SECONDS, LEAST_DEAD_AFTER_SECONDS, apply_watch, heartbeat_environment

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

Target = Literal["process", "kubernetes", "ecs"]

_PLACEHOLDER = re.compile(r"\{\{ \$EIGENMERGE_([A-Z]+) \}\}")
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
_VERSIONED_IMAGE = re.compile(r".+(@sha256:[0-9a-f]{64}|:[\w][\w.-]*)")


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """Options of a deployment.

    store : directory or URI that keeps spectra and parts; every worker must reach it
    image : versioned image of the containers; None for a process pool
    recipe, registry, publish : of the nightly merge; all three or none of them
    keep : number of published merges that the nightly merge keeps; None keeps all
    pool : name of the work pool; None: eigenmerge-<target>
    limit : maximum number of flow runs of this pool at the same time; None keeps an existing pool's limit, and is 1 for
        a new pool
    cron : schedule of the nightly merge, in UTC; None: that of prefect.yaml
    job_variables : values for variables of the pool, such as {"gpus": 8, "namespace": "merge"}
    update_pool : replace the job template of an existing pool
    dead_after : seconds without a heartbeat after which the server ends a run
    """

    store: str
    image: str | None = None
    recipe: str | None = None
    registry: str | None = None
    publish: str | None = None
    keep: int | None = None
    pool: str | None = None
    limit: int | None = None
    cron: str | None = None
    job_variables: Mapping[str, Any] | None = None
    update_pool: bool = False
    dead_after: int = DEAD_AFTER_SECONDS


def base_job_template(target: Target) -> dict[str, Any]:
    """Return the job template of a work pool, from `<target>_pool.json`."""
    return json.loads(files(__spec__.parent).joinpath(f"{target}_pool.json").read_text(encoding="utf-8"))


def deployment_settings(target: Target, options: DeployOptions) -> list[dict[str, Any]]:
    """Return the deployments of prefect.yaml for the target, with the options filled in.

    Raises
    ------
    DeployError : an option is missing or invalid
    """
    import yaml

    _check_options(target, options)
    document = yaml.safe_load(files(__spec__.parent).joinpath("prefect.yaml").read_text(encoding="utf-8"))
    values = {name: getattr(options, name.lower()) for name in ("IMAGE", "STORE", "RECIPE", "REGISTRY", "PUBLISH")}
    chosen: list[dict[str, Any]] = []
    for entry in document["deployments"]:
        kind, _, entry_target = entry["name"].partition("-")
        if entry_target != target or (kind == "nightly" and options.registry is None):
            continue
        settings = _fill_placeholders(entry, values)
        settings["work_pool"] = {
            "name": options.pool or settings["work_pool"]["name"],
            "job_variables": {**settings["work_pool"].get("job_variables", {}), **(options.job_variables or {})},
        }
        if heartbeats := heartbeat_environment(options.dead_after):
            variables = settings["work_pool"]["job_variables"]
            variables["env"] = {**variables.get("env", {}), **heartbeats}
        if options.cron is not None and settings.get("schedules"):
            settings["schedules"] = [{**settings["schedules"][0], "cron": options.cron}]
        if kind == "nightly" and options.keep is not None:
            settings["parameters"] = {**settings["parameters"], "keep": options.keep}
        chosen.append(settings)
    return chosen


def deploy(target: Target, options: DeployOptions, *, api_url: str) -> str:
    """Apply the work pool and the deployments to the Prefect server at `api_url`, and return the next steps as text.

    Raises
    ------
    DeployError : an option is missing or invalid, no server answers, or the pool exists with another type
    """
    settings = deployment_settings(target, options)

    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api_url}):
        try:
            with get_client(sync_client=True) as client:
                pool = settings[0]["work_pool"]["name"]
                pool_line = _apply_pool(client, target, replace(options, pool=pool))
                apply_watch(client, options.dead_after)
            names = [_apply_deployment(entry) for entry in settings]
        except httpx.ConnectError as error:
            raise DeployError(
                f"no Prefect server answers at {api_url} ({error}); start one with `prefect server start`, or set"
                " --api-url or PREFECT_API_URL"
            ) from error
    return _describe_next_steps(target, api_url, pool=pool, pool_line=pool_line, names=names)


def _check_options(target: Target, options: DeployOptions) -> None:
    if target == "process" and options.image is not None:
        raise DeployError(
            f"--image {options.image!r}: a process pool uses the environment of its worker; remove --image"
        )
    if target != "process":
        tag = (options.image or "").rpartition("/")[2]
        if not _VERSIONED_IMAGE.fullmatch(tag) or tag.endswith(":latest"):
            raise DeployError(
                f"--image is {options.image!r}; expected an image with a version, such as"
                " registry.example/eigenmerge:0.1.0-cuda, because its code must not change during a run"
            )
    nightly = {"recipe": options.recipe, "registry": options.registry, "publish": options.publish}
    missing = [name for name, value in nightly.items() if value is None]
    if 0 < len(missing) < len(nightly):
        raise DeployError(f"the nightly merge needs --recipe, --registry and --publish; missing: {', '.join(missing)}")
    if options.limit is not None and options.limit < 1:
        raise DeployError(f"--limit is {options.limit}; expected the number of runs at the same time, 1 or more")
    if options.dead_after < LEAST_DEAD_AFTER_SECONDS:
        raise DeployError(
            f"--dead-after is {options.dead_after} seconds; expected {LEAST_DEAD_AFTER_SECONDS} or more, because a run"
            " sends a heartbeat every 30 seconds at most"
        )
    known = base_job_template(target)["variables"]["properties"]
    for name, value in (options.job_variables or {}).items():
        if name not in known:
            raise DeployError(f"--set {name}: the {target} pool has no such variable{suggestion(name, known)}")
        secrets = [key for key in value if _SECRET_NAME.search(key)] if name == "env" else []
        if secrets:
            raise DeployError(
                f"--set env: contains {secrets[0]}, which everybody with access to the deployment could read; refer to"
                " secrets as docs/operations.md describes"
            )


def _fill_placeholders(value: Any, values: Mapping[str, str | None]) -> Any:
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: values[match[1]] or "", value)
    if isinstance(value, dict):
        return {key: _fill_placeholders(entry, values) for key, entry in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_fill_placeholders(entry, values) for entry in cast("list[Any]", value)]
    return value


def _apply_pool(client: SyncPrefectClient, target: Target, options: DeployOptions) -> str:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    assert options.pool is not None
    template = base_job_template(target)
    try:
        pool = client.read_work_pool(options.pool)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=options.pool,
                type=target,
                description="Created by `eigenmerge deploy`.",
                base_job_template=template,
                concurrency_limit=options.limit or 1,
            )
        )
        return f"created, limit {options.limit or 1}"
    if pool.type != target:
        raise DeployError(
            f"work pool {options.pool!r} has type {pool.type!r}, expected {target!r}; choose another with --pool"
        )
    update: dict[str, Any] = {}
    if options.limit is not None and options.limit != pool.concurrency_limit:
        update["concurrency_limit"] = options.limit
    if options.update_pool:
        update["base_job_template"] = template
    if update:
        client.update_work_pool(options.pool, WorkPoolUpdate(**update))
    limit = update.get("concurrency_limit", pool.concurrency_limit)
    kept = "" if options.update_pool or pool.base_job_template == template else "; its edited job template is kept"
    return f"exists, {f'limit {limit}' if limit else 'no limit'}{kept}"


def _apply_deployment(settings: Mapping[str, Any]) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.deployments.runner import RunnerDeployment
    from prefect.events import DeploymentEventTrigger
    from prefect.flows import load_flow_from_entrypoint
    from prefect.types.entrypoint import EntrypointType

    flow = load_flow_from_entrypoint(settings["entrypoint"], use_placeholder_flow=False)
    limit = settings.get("concurrency_limit")
    deployment = RunnerDeployment.from_flow(
        flow,
        settings["name"],
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=settings["description"],
        tags=list(settings["tags"]),
        version=installed_version("eigenmerge"),
        parameters=dict(settings["parameters"]),
        work_pool_name=settings["work_pool"]["name"],
        job_variables=dict(settings["work_pool"]["job_variables"]),
        concurrency_limit=ConcurrencyLimitConfig(**limit) if limit else None,
        triggers=[DeploymentEventTrigger.model_validate(trigger) for trigger in settings.get("triggers", [])],
    )
    schedules = [
        {
            "schedule": CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]),
            "active": schedule["active"],
            "slug": schedule["slug"],
        }
        for schedule in settings.get("schedules", [])
    ]
    deployment.apply(schedules=schedules or None)
    when = f" (cron {settings['schedules'][0]['cron']} UTC, and after `eigenmerge announce`)" if schedules else ""
    return f"{deployment.full_name}{when}"


# How to provide credentials and start a worker, as lines of the printed instructions.
_SETUP_LINES: dict[Target, tuple[str, str]] = {
    "process": (
        "# the worker needs the credentials of the store in its environment",
        "prefect worker start --pool {pool}",
    ),
    "kubernetes": (
        "kubectl create secret generic eigenmerge --from-env-file=FILE   # credentials of the store",
        "pip install prefect-kubernetes && prefect worker start --pool {pool}   # or use the Helm chart prefect-worker",
    ),
    "ecs": (
        "# set execution_role_arn and task_role_arn with --set; the task role reads and writes the store",
        "pip install prefect-aws && prefect worker start --pool {pool}",
    ),
}


def _describe_next_steps(target: Target, api_url: str, *, pool: str, pool_line: str, names: list[str]) -> str:
    credentials, worker = (line.format(pool=pool) for line in _SETUP_LINES[target])
    merge_name = names[0].partition(" ")[0]
    lines = [
        f"Prefect server {api_url}",
        f"  work pool   {pool}: {pool_line}",
        *(f"  deployment  {name}" for name in names),
        "Next:",
        f"  export PREFECT_API_URL={api_url}",
        f"  {credentials}",
        f"  {worker}",
        f"  prefect deployment run {merge_name} -p recipe=RECIPE -p destination=OUT",
    ]
    if len(names) > 1:
        lines.append(f"  prefect deployment run {names[1].partition(' ')[0]}   # starts the nightly merge now")
    return "\n".join(lines)
