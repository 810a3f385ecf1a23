"""Work pools and deployments on a real Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate

from eigenmerge.core.errors import DeployError
from eigenmerge.deployments.deploy import DeployOptions, base_job_template, deploy, deployment_settings

ROOT = Path(__file__).parents[2]
IMAGE = "registry.example/eigenmerge:0.1.0-cuda"
NIGHTLY = {"recipe": "s3://bucket/recipe.yaml", "registry": "s3://bucket/experts", "publish": "s3://bucket/merged"}


def options_for(target: str, **changes: Any) -> DeployOptions:
    image = None if target == "process" else IMAGE
    return DeployOptions(**{"store": "s3://bucket/store", "image": image, **NIGHTLY, **changes})


def read_deployment(name: str) -> dict[str, Any]:
    """Return the settings of a deployment on the server, without ids and times."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name)
    chosen = {
        "entrypoint", "parameters", "work_pool_name", "job_variables", "tags", "description", "concurrency_options",
        "enforce_parameter_schema", "parameter_openapi_schema", "pull_steps",
    }  # fmt: skip
    found = deployment.model_dump(mode="json", include=chosen)
    found["pull_steps"] = found["pull_steps"] or []  # an update by Prefect changes [] to None
    found["limit"] = deployment.global_concurrency_limit and deployment.global_concurrency_limit.limit
    found["schedules"] = [(s.slug, s.active, s.schedule.model_dump(mode="json")) for s in deployment.schedules]
    return found


def automations_of(name: str) -> list[dict[str, Any]]:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name)
        found = client.read_resource_related_automations(f"prefect.deployment.{deployment.id}")
    return [automation.model_dump(mode="json") for automation in found]


@pytest.mark.parametrize("target", ["process", "kubernetes", "ecs"])
def test_a_second_call_changes_nothing(prefect_api: str, target: Any) -> None:
    text = deploy(target, options_for(target, limit=4), api_url=prefect_api)
    with get_client(sync_client=True) as client:
        pool = client.read_work_pool(f"eigenmerge-{target}")
    assert pool.type == target
    assert pool.concurrency_limit == 4
    assert pool.base_job_template == base_job_template(target)

    merge, nightly = read_deployment(f"merge/merge-{target}"), read_deployment(f"nightly/nightly-{target}")
    assert merge["entrypoint"] == "eigenmerge.flows.merge.merge"
    assert merge["pull_steps"] == []
    assert merge["parameters"]["store"] == "s3://bucket/store"
    assert merge["job_variables"].get("image") == (None if target == "process" else IMAGE)
    assert merge["parameters"].get("device") == (None if target == "process" else "cuda")
    assert {"recipe", "destination"} <= set(merge["parameter_openapi_schema"]["properties"])
    assert merge["schedules"] == []
    assert NIGHTLY.items() <= nightly["parameters"].items()
    assert nightly["schedules"][0][2]["cron"] == "0 2 * * *"
    assert nightly["limit"] == 1
    (automation,) = automations_of(f"nightly/nightly-{target}")
    assert automation["trigger"]["expect"] == ["eigenmerge.expert.registered"]
    assert automation["trigger"]["match"]["eigenmerge.registry"] == NIGHTLY["registry"]

    assert "created, limit 4" in text
    assert f"prefect worker start --pool eigenmerge-{target}" in text
    assert f"prefect deployment run merge/merge-{target}" in text

    again = deploy(target, options_for(target), api_url=prefect_api)
    assert "exists, limit 4" in again
    assert read_deployment(f"merge/merge-{target}") == merge
    assert read_deployment(f"nightly/nightly-{target}") == nightly
    assert len(automations_of(f"nightly/nightly-{target}")) == 1


def test_an_edited_job_template_is_kept_unless_update_pool(prefect_api: str) -> None:
    options = options_for("kubernetes", pool="edited")
    deploy("kubernetes", options, api_url=prefect_api)
    template = base_job_template("kubernetes")
    template["variables"]["properties"]["memory"]["default"] = "512Gi"
    with get_client(sync_client=True) as client:
        client.update_work_pool("edited", WorkPoolUpdate(base_job_template=template))
        text = deploy("kubernetes", options_for("kubernetes", pool="edited", limit=7), api_url=prefect_api)
        assert "edited job template is kept" in text
        pool = client.read_work_pool("edited")
        assert (pool.base_job_template, pool.concurrency_limit) == (template, 7)
        deploy("kubernetes", options_for("kubernetes", pool="edited", update_pool=True), api_url=prefect_api)
        assert client.read_work_pool("edited").base_job_template == base_job_template("kubernetes")


def test_options_reach_the_deployments(prefect_api: str) -> None:
    variables = {"gpus": 8, "memory": "500Gi", "env": {"AWS_REGION": "eu-west-1"}}
    options = options_for("kubernetes", pool="large", cron="30 4 * * 1", job_variables=variables)
    deploy("kubernetes", options, api_url=prefect_api)
    assert read_deployment("merge/merge-kubernetes")["job_variables"] == {"image": IMAGE, **variables}
    assert read_deployment("merge/merge-kubernetes")["work_pool_name"] == "large"
    assert read_deployment("nightly/nightly-kubernetes")["schedules"][0][2]["cron"] == "30 4 * * 1"


def test_no_nightly_merge_without_a_registry() -> None:
    options = DeployOptions(store="/store")
    assert [entry["name"] for entry in deployment_settings("process", options)] == ["merge-process"]


@pytest.mark.parametrize("target", ["kubernetes"])
def test_prefect_deploy_gives_the_same(prefect_api: str, server_environment: dict[str, str], target: Any) -> None:
    deploy(target, options_for(target, pool=None), api_url=prefect_api)
    names = [f"merge/merge-{target}", f"nightly/nightly-{target}"]
    ours = [read_deployment(name) for name in names]
    environment = {
        **server_environment,
        "PREFECT_API_URL": prefect_api,
        "EIGENMERGE_STORE": "s3://bucket/store",
        "EIGENMERGE_IMAGE": IMAGE,
        **{f"EIGENMERGE_{name.upper()}": value for name, value in NIGHTLY.items()},
    }
    chosen = ["--prefect-file", "deployments/prefect.yaml", "--name", f"merge-{target}", "--name", f"nightly-{target}"]
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *chosen],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name, before in zip(names, ours, strict=True):
        assert read_deployment(name) == before
    (automation,) = automations_of(names[1])
    assert automation["trigger"]["match"]["eigenmerge.registry"] == NIGHTLY["registry"]


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        ("kubernetes", {"image": None}, "with a version"),
        ("kubernetes", {"image": "eigenmerge"}, "with a version"),
        ("ecs", {"image": "registry.example:5000/eigenmerge"}, "with a version"),
        ("ecs", {"image": "eigenmerge:latest"}, "with a version"),
        ("process", {"image": IMAGE}, "--image"),
        ("process", {"publish": None}, "missing: publish"),
        ("process", {"limit": 0}, "1 or more"),
        (
            "kubernetes",
            {"job_variables": {"gpu": 8}},
            "pool has no such variable; did you mean 'gpus'",
        ),
        ("kubernetes", {"job_variables": {"env": {"AWS_SECRET_ACCESS_KEY": "x"}}}, "refer to secrets"),
    ],
)
def test_invalid_options_are_refused_first(target: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        deploy(target, options_for(target, **changes), api_url="http://127.0.0.1:9/api")


def test_no_server() -> None:
    with pytest.raises(DeployError, match="no Prefect server answers at http://127"):
        deploy("process", options_for("process"), api_url="http://127.0.0.1:9/api")


def test_a_pool_of_another_type_is_refused(prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="theirs", type="process"))
    with pytest.raises(DeployError, match="'theirs' has type 'process'"):
        deploy("kubernetes", options_for("kubernetes", pool="theirs"), api_url=prefect_api)


def test_importing_deploy_does_not_import_prefect() -> None:
    code = "import sys, eigenmerge.deployments.deploy; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
