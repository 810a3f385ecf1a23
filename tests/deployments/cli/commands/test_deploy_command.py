"""The options of `eigenmerge deploy` and `eigenmerge announce`, and errors in them."""

from __future__ import annotations

import pytest

from eigenmerge.core.errors import DeployError, RecipeError
from eigenmerge.deployments.cli.commands.deploy_command import announce, deploy, parse_variables


def test_variables_are_json_or_text() -> None:
    found = parse_variables(["gpus=8", "memory=64Gi", 'env={"A": "b=c"}', "name=x=y"])
    assert found == {"gpus": 8, "memory": "64Gi", "env": {"A": "b=c"}, "name": "x=y"}


@pytest.mark.parametrize("pair", ["gpus", "=8", ""])
def test_a_variable_needs_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(DeployError, match="NAME=VALUE"):
        parse_variables([pair])


def test_no_address_of_a_server() -> None:
    with pytest.raises(DeployError, match="--api-url"):
        deploy("process", store="/store", api_url=None)
    with pytest.raises(DeployError, match="--api-url"):
        announce("/registry", "expert", api_url="")


def test_credentials_in_an_address_are_refused() -> None:
    with pytest.raises(RecipeError, match="registry: contains credentials") as refused:
        deploy("process", store="/store", registry="s3://key:word@bucket/experts", api_url="http://127.0.0.1:9/api")
    assert "word" not in str(refused.value)
