"""The job templates of the work pools, filled by Prefect and checked against the schemas of Kubernetes and AWS."""

from __future__ import annotations

import asyncio
import json
import re
from copy import deepcopy
from typing import Any

import pytest
from prefect.workers.base import BaseJobConfiguration
from pydantic import Field

from eigenmerge.deployments.deploy import base_job_template

IMAGE = "registry.example/eigenmerge:0.1.0-cuda"
# Prefect resolves references to blocks and variables in a template, which needs a server.
pytestmark = pytest.mark.usefixtures("prefect_api")
TARGETS = ["process", "kubernetes", "ecs"]


class FilledJob(BaseJobConfiguration):
    """The fields that the workers of Kubernetes and ECS get; Prefect fills them."""

    job_manifest: dict[str, Any] = Field(default_factory=dict)
    task_definition: dict[str, Any] = Field(default_factory=dict)
    task_run_request: dict[str, Any] = Field(default_factory=dict)


def fill(target: str, **variables: Any) -> FilledJob:
    template = base_job_template(target)  # type: ignore[arg-type]
    values = {"name": "run", "command": "python -m prefect.engine", "labels": {"a": "b"}, **variables}
    return asyncio.run(FilledJob.from_template_and_values(template, values))


@pytest.mark.parametrize("target", TARGETS)
def test_every_placeholder_is_a_described_variable(target: str) -> None:
    template = base_job_template(target)  # type: ignore[arg-type]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    properties = template["variables"]["properties"]
    assert used == set(properties)
    assert all(entry.get("description") and entry.get("title") for entry in properties.values())


def kubernetes_job(**variables: Any) -> dict[str, Any]:
    """Return the manifest as the worker sends it, with its environment as a list."""
    manifest = deepcopy(fill("kubernetes", image=IMAGE, **variables).job_manifest)
    pod = manifest["spec"]["template"]["spec"]
    # Prefect's Kubernetes worker requires these two fields here; Kubernetes ignores them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    container = pod["containers"][0]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = container["args"].split()
    return manifest


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"gpus": 0, "tolerations": [], "memory": "8Gi"},
        {
            "gpus": 8,
            "namespace": "merge",
            "service_account_name": "eigenmerge",
            "node_selector": {"cloud.google.com/gke-spot": "true"},
            "priority_class_name": "filler",
        },
    ],
)
def test_kubernetes_accepts_the_job(variables: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    manifest = kubernetes_job(**variables)
    validator.validate(manifest, "1.33", strict=True)
    validator.validate(manifest, "1.29", strict=True)
    misspelled = deepcopy(manifest)
    misspelled["spec"]["template"]["spec"]["nodeSelektor"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(misspelled, "1.33", strict=True)


def test_image_resources_and_security_of_the_pod() -> None:
    pod = kubernetes_job(gpus=2)["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == IMAGE
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert "cpu" not in container["resources"]["limits"]
    assert container["envFrom"] == [{"secretRef": {"name": "eigenmerge", "optional": True}}]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["terminationGracePeriodSeconds"] == 120
    assert not pod["automountServiceAccountToken"]


def test_the_kubernetes_worker_accepts_the_template() -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="pip install prefect-kubernetes")
    values = {"name": "run", "command": "python -m prefect.engine", "image": IMAGE}
    configuration = asyncio.run(
        worker.KubernetesWorkerJobConfiguration.from_template_and_values(base_job_template("kubernetes"), values)
    )
    assert configuration.job_manifest["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE


def test_the_ecs_worker_accepts_the_template() -> None:
    worker = pytest.importorskip("prefect_aws.workers.ecs_worker", reason="pip install prefect-aws")
    values = {"name": "run", "command": "python -m prefect.engine", "image": IMAGE}
    configuration = asyncio.run(worker.ECSJobConfiguration.from_template_and_values(base_job_template("ecs"), values))
    assert configuration.task_definition["containerDefinitions"][0]["image"] == IMAGE


def without_empty(value: Any) -> Any:
    """Return the value without empty entries, which the ECS worker removes before it calls AWS."""
    if isinstance(value, dict):
        cleaned = {key: without_empty(entry) for key, entry in value.items()}
        return {key: entry for key, entry in cleaned.items() if entry or entry is False}
    return [without_empty(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"resource_requirements": []},
        {
            "secrets": [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": "arn:aws:secretsmanager:eu-west-1:1:secret:x"}],
            "execution_role_arn": "arn:aws:iam::1:role/start",
            "task_role_arn": "arn:aws:iam::1:role/run",
            "cluster": "merge",
        },
    ],
)
def test_aws_accepts_the_task(variables: dict[str, Any]) -> None:
    """botocore's model of ECS checks names, types and required fields, as in a call."""
    import botocore.session
    from botocore.validate import ParamValidator

    service = botocore.session.Session().get_service_model("ecs")
    job = fill("ecs", image=IMAGE, env={"A": "b"}, **variables)
    definition = without_empty(job.task_definition)
    request = without_empty(job.task_run_request)
    # The worker converts these itself: numbers of a task to strings, environment and tags to lists.
    definition |= {name: str(definition[name]) for name in ("cpu", "memory")}
    overrides = request["overrides"] | {name: str(request["overrides"][name]) for name in ("cpu", "memory")}
    container = overrides["containerOverrides"][0]
    container |= {"environment": [{"name": "A", "value": "b"}], "command": container["command"].split()}
    request |= {"overrides": overrides, "tags": [{"key": "a", "value": "b"}], "taskDefinition": "eigenmerge"}
    for operation, parameters in (("RegisterTaskDefinition", definition), ("RunTask", request)):
        report = ParamValidator().validate(parameters, service.operation_model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
    wrong = {**definition, "famly": "x"}
    shape = service.operation_model("RegisterTaskDefinition").input_shape
    assert ParamValidator().validate(wrong, shape).has_errors()
    gpus = definition["containerDefinitions"][0].get("resourceRequirements")
    assert gpus == (None if variables == {"resource_requirements": []} else [{"type": "GPU", "value": "1"}])


def test_no_template_has_a_variable_for_a_secret() -> None:
    for target in TARGETS:
        for name, entry in base_job_template(target)["variables"]["properties"].items():  # type: ignore[arg-type]
            assert not re.search(r"password|token|access_key", name), name
            assert not re.search(r"AKIA|eyJ", json.dumps(entry.get("default", "")))


@pytest.mark.parametrize("target", ["process", "kubernetes"])
def test_runs_of_a_pool_send_no_telemetry(target: str) -> None:
    """A run on ECS gets the same two variables from the image."""
    environment = fill(target, image=IMAGE).env
    assert environment.items() >= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}.items()
