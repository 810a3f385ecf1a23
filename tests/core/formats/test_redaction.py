"""Redaction: which options are secrets, and what is removed from addresses and messages."""

from __future__ import annotations

from eigenmerge.core.formats.redaction import find_secrets, redact


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
