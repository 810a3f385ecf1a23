"""Redaction: which options are secrets, and what is removed from addresses and messages."""

from __future__ import annotations

import pytest

from eigenmerge.core.formats.redaction import find_secrets, has_password, redact


def test_every_string_option_is_a_secret_unless_it_is_known_to_be_public() -> None:
    options = {
        "key": "AKIAPLANTED",
        "secret": "planted-secret",
        "token": "planted-token",
        "endpoint_url": "http://user:planted-password@127.0.0.1:1",
        "client_kwargs": {"aws_session_token": "planted-session", "region_name": "eu-west-1"},
        "credentials": ["planted-in-a-list"],
        "anon": False,
        "pin": "123",
    }
    expected = {"AKIAPLANTED", "planted-secret", "planted-token", "planted-session", "planted-in-a-list"}
    assert set(find_secrets(options)) == expected
    assert find_secrets(None) == ()


def test_longer_secrets_come_first_so_that_no_rest_of_them_remains() -> None:
    options = {"key": "abcdef", "secret": "abcdef-and-more"}
    assert redact("denied for abcdef-and-more", find_secrets(options)) == "denied for ***"


def test_addresses() -> None:
    assert redact("sftp://me:pass@host/x") == "sftp://***@host/x"
    assert redact("https://h/x?X-Amz-Signature=abc&y=1 failed") == "https://h/x?*** failed"
    assert redact("'https://h/x?sig=abc' failed") == "'https://h/x?***' failed"


def test_addresses_without_credentials_are_unchanged() -> None:
    for text in ("s3://b/a@b/c?d", "/models/a@main", "hf://owner/name@v1", "https://h/x?page=2"):
        assert redact(text) == text


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:pl/anted@bucket/x",
        "https://user:plan@ted@host/p",
        "s3://key:plan%2Fted@bucket",
        "s3:/key:pl/anted@bucket/x",  # str of a Path
        "simplecache::s3://key:pl/anted@bucket",
        "s3://key%3Aplanted@bucket",
        "https://:planted@host",
    ],
)
def test_passwords_with_any_character_are_found_and_removed(address: str) -> None:
    assert has_password(address) and has_password(f"- model: {address}\n")
    assert "anted" not in redact(f"cannot open {address}: denied")


@pytest.mark.parametrize(
    "address",
    [
        "hf://owner/name@v1",
        "https://host:8080/path@v1",
        "abfss://box@account.dfs.core.windows.net/x",
        "s3://b/a@b/c",
        "tcp://10.0.0.1:8786",
        "{'model': '/data/x:y@z'}",
    ],
)
def test_ports_and_revisions_are_no_passwords(address: str) -> None:
    assert not has_password(address)
