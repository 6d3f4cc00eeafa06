"""Challenges, tokens, credential files, refusals and retries."""

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.challenge import Challenge, decode_token, merge_scopes, parse_challenges
from registry.credentials import (
    Credentials,
    Helper,
    decode_credential_file,
    decode_helper_reply,
    find_credentials,
)
from registry.errors import (
    ContentError,
    CredentialError,
    DeniedError,
    NotFoundError,
    RegistryError,
    ResponseError,
    TooManyRequestsError,
)
from registry.replies import refusal
from registry.retry import RetryPolicy, parse_retry_after

HUB = ("docker.io", "library/busybox")


def basic(name: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def look(config: object, registry: str, repository: str = "a/b") -> Credentials | Helper | None:
    return find_credentials(
        decode_credential_file(json.dumps(config).encode(), "config.json"), registry, repository
    )


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/t",service="s, t",scope="repository:a:pull,push"'],
            [
                (
                    "bearer",
                    {"realm": "https://a/t", "service": "s, t", "scope": "repository:a:pull,push"},
                )
            ],
        ),
        (
            ['Basic realm="a\\"b", Bearer realm=t , error=invalid_token'],
            [("basic", {"realm": 'a"b'}), ("bearer", {"realm": "t", "error": "invalid_token"})],
        ),
        (["Negotiate", "BEARER Realm = x"], [("negotiate", {}), ("bearer", {"realm": "x"})]),
        (['realm="lost"'], []),
        ([""], []),
        (['Bearer realm="never closed'], [("bearer", {})]),
    ],
)
def test_challenges(headers, expected):
    found = parse_challenges(headers)
    assert [(c.scheme, dict(c.parameters)) for c in found][: len(expected)] == expected


@given(st.lists(st.text(alphabet=st.sampled_from('Bb =",\\x\u00e9'), max_size=40)))
def test_any_header_is_read(headers):
    assert all(isinstance(c, Challenge) for c in parse_challenges(headers))


@pytest.mark.parametrize(
    ("reply", "lifetime_s"),
    [
        ({"token": "t"}, 60),
        ({"access_token": "t", "expires_in": 300}, 300),
        ({"token": "t", "expires_in": 1}, 60),
        ({"token": "t", "expires_in": -5}, 60),
        ({"token": "t", "expires_in": "x"}, 60),
        ({"token": "t", "expires_in": 1e12}, 86400),
    ],
)
def test_tokens(reply, lifetime_s):
    token = decode_token(json.dumps(reply).encode(), "auth.example.com")
    assert (token.value, token.lifetime_s) == ("t", lifetime_s)
    assert "t" not in repr(token).replace("Token", "").replace("lifetime", "")


@pytest.mark.parametrize("reply", [b"", b"{}", b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}'])
def test_no_token(reply):
    with pytest.raises(ContentError):
        decode_token(reply, "auth.example.com")


def test_scopes_are_merged_by_what_they_name():
    ours = ("repository:a/b:pull,push",)
    assert merge_scopes(ours, "repository:a/b:pull") == ours
    assert merge_scopes(ours, "repository:c:pull x:y:z") == (*ours, "repository:c:pull", "x:y:z")


def test_docker_config():
    config = {
        "auths": {
            "https://index.docker.io/v1/": basic("hub", "p:w"),
            "ghcr.io": basic("gh", "x"),
            "quay.io/team/one": basic("one", "x"),
            "quay.io/team": basic("team", "x"),
            "https://reg.example.com": {"username": "u", "password": "p"},
            "localhost:5000": {"identitytoken": "refresh"},
            "empty.example.com": {},
        }
    }
    assert look(config, *HUB) == Credentials("hub", "p:w")
    assert look(config, "ghcr.io") == Credentials("gh", "x")
    assert look(config, "quay.io", "team/one") == Credentials("one", "x")
    assert look(config, "quay.io", "team/two") == Credentials("team", "x")
    assert look(config, "quay.io", "teams/two") is None
    assert look(config, "reg.example.com") == Credentials("u", "p")
    assert look(config, "localhost:5000") == Credentials(identity_token="refresh")
    assert look(config, "localhost") is None
    assert look(config, "empty.example.com") is None
    assert look({}, "ghcr.io") is None


def test_helpers():
    config = {
        "auths": {"ghcr.io": basic("gh", "x"), "gcr.io": basic("plain", "x")},
        "credHelpers": {"gcr.io": "gcloud"},
        "credsStore": "desktop",
    }
    assert look(config, "gcr.io") == Helper("docker-credential-gcloud", "gcr.io")
    assert look(config, "ghcr.io") == Credentials("gh", "x")
    assert look(config, *HUB) == Helper("docker-credential-desktop", "https://index.docker.io/v1/")


@pytest.mark.parametrize("name", ["../evil", "a/b", "-x", "a b", ""])
def test_a_helper_is_the_name_of_a_program(name):
    with pytest.raises(CredentialError):
        look({"credHelpers": {"x.io": name}}, "x.io")


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"auths": []},
        {"auths": {"x": 1}},
        {"auths": {"x": {"auth": "%%%"}}},
        {"auths": {"x": {"auth": base64.b64encode(b"nocolon").decode()}}},
        {"credHelpers": {"x": 1}},
        {"credsStore": 1},
    ],
)
def test_broken_files(config):
    with pytest.raises((ContentError, CredentialError)) as caught:
        look(config, "x")
    assert "config.json" in str(caught.value)


def test_helper_replies():
    helper = Helper("docker-credential-x", "h")
    reply = json.dumps({"ServerURL": "h", "Username": "u", "Secret": "s"}).encode()
    assert decode_helper_reply(reply, 0, helper) == Credentials("u", "s")
    token = json.dumps({"Username": "<token>", "Secret": "s"}).encode()
    assert decode_helper_reply(token, 0, helper) == Credentials(identity_token="s")
    missing = b"credentials not found in native keychain\n"
    assert decode_helper_reply(missing, 1, helper) is None
    with pytest.raises(CredentialError, match="locked"):
        decode_helper_reply(b"keychain locked", 1, helper)
    with pytest.raises(ContentError):
        decode_helper_reply(b"hello", 0, helper)


def test_secrets_do_not_show():
    shown = repr(Credentials("user", "one", "two", "three"))
    assert "user" in shown
    assert not any(secret in shown for secret in ("one", "two", "three"))


@given(st.binary(max_size=100) | st.text().map(str.encode))
def test_any_file_is_read_or_refused(raw):
    with suppress(RegistryError):
        find_credentials(decode_credential_file(raw, "x"), "h", "r")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, DeniedError),
        (403, DeniedError),
        (404, NotFoundError),
        (429, TooManyRequestsError),
        (416, ResponseError),
        (500, ResponseError),
    ],
)
def test_refusals(status, kind):
    body = b'{"errors": [{"code": "SOME_CODE", "message": "a\\nb\\u001b[31m"}]}'
    error = refusal(status, body, "h.io/x: blob", 7.0)
    assert type(error) is kind
    assert (error.status, error.code) == (status, "SOME_CODE")
    assert "h.io/x: blob" in str(error)
    assert str(error).isprintable()
    if status == 429:
        assert error.retry_after_s == 7.0


@given(st.binary(max_size=100))
def test_any_body_is_a_refusal(body):
    assert refusal(500, body, "x").status == 500


def test_retries_end():
    policy = RetryPolicy(budget_s=10.0, attempts=4)
    assert policy.delay_s(1, 0, None, 1.0) == pytest.approx(0.2)
    assert policy.delay_s(2, 0, None, 1.0) == pytest.approx(0.4)
    assert policy.delay_s(3, 0, None, 0.0) == pytest.approx(0.4)
    assert policy.delay_s(4, 0, None, 1.0) is None
    assert policy.delay_s(1, 9.9, None, 1.0) is None
    assert policy.delay_s(1, 0, 5.0, 1.0) == 5.0
    assert policy.delay_s(1, 6, 5.0, 1.0) is None


@pytest.mark.parametrize(
    ("header", "date", "expected"),
    [
        (None, None, None),
        ("5", None, 5),
        ("soon", None, None),
        ("-1", None, None),
        ("9" * 30, None, 999999999),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None, None),
        ("Wed, 21 Oct 2015 07:28:00", "Wed, 21 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after(header, date, expected):
    assert parse_retry_after(header, date) == expected
