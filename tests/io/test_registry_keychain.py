"""Credential files and helper programs of a machine."""

import base64
import json
from pathlib import Path

import pytest
import trio
import trio.testing

from registry.credentials import Credentials, Helper
from registry.errors import ContentError, CredentialError
from registry.keychain import ask_helper, credential_files, look_up

HELPER = """#!/bin/sh
[ "$1" = get ] || exit 9
read -r server
case "$server" in
  good.example.com) echo '{"ServerURL": "x", "Username": "u", "Secret": "s"}' ;;
  https://index.docker.io/v1/) echo '{"Username": "<token>", "Secret": "hub"}' ;;
  slow.example.com) exec sleep 1000 ;;
  loud.example.com) head -c 300000 /dev/zero ;;
  broken.example.com) echo 'vault is sealed'; echo 'and more' >&2; exit 3 ;;
  *) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, with ``docker-credential-test`` on the path."""
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin/docker-credential-test"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(path: Path, username: str = "", **config: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if username:
        auth = base64.b64encode(f"{username}:p".encode()).decode()
        config["auths"] = {"reg.example.com": {"auth": auth}}
    path.write_text(json.dumps(config))


async def user(registry: str = "reg.example.com") -> str | None:
    found = await look_up(registry, "a/b", 5)
    return found.username if found else None


async def test_where_files_are_looked_for(home, monkeypatch):
    assert await user() is None
    write(home / ".config/containers/auth.json", "podman")
    assert await user() == "podman"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    write(home / "run/containers/auth.json", "session")
    assert await user() == "session"
    write(home / ".docker/config.json", "docker")
    assert await user() == "docker"
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "other"))
    assert await user() == "session"
    write(home / "other/config.json", "other")
    assert await user() == "other"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "auth"))
    assert await user() is None
    write(home / "auth", "explicit")
    assert await user() == "explicit"
    assert await user("else.example.com") is None


def test_without_a_home():
    assert [str(path) for path in credential_files({})] == [
        "/.docker/config.json",
        "/.config/containers/auth.json",
    ]


async def test_broken_files_are_named(home):
    path = home / ".docker/config.json"
    write(path)
    path.write_text("{")
    with pytest.raises(ContentError, match=str(path)):
        await user()
    path.write_text("")
    assert await user() is None
    path.unlink()
    path.mkdir()
    with pytest.raises(CredentialError, match=str(path)):
        await user()


async def test_helpers(home):
    write(
        home / ".docker/config.json",
        credHelpers={"good.example.com": "test", "missing.example.com": "test"},
        credsStore="test",
    )
    assert await look_up("good.example.com", "a", 5) == Credentials("u", "s")
    assert await look_up("missing.example.com", "a", 5) is None
    assert await look_up("docker.io", "library/a", 5) == Credentials(identity_token="hub")
    with pytest.raises(CredentialError, match=r"docker-credential-test failed.*vault is sealed"):
        await look_up("broken.example.com", "a", 5)
    with pytest.raises(CredentialError, match="answered 300000 bytes"):
        await look_up("loud.example.com", "a", 5)


async def test_a_helper_that_is_not_there(home):
    with pytest.raises(CredentialError, match="docker-credential-none: No such file"):
        await ask_helper(Helper("docker-credential-none", "h"), 5)


async def test_a_helper_that_hangs(home):
    with pytest.raises(CredentialError, match=r"no answer within 0.2 s"):
        await ask_helper(Helper("docker-credential-test", "slow.example.com"), 0.2)


async def test_a_helper_ends_with_who_asked(home):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_helper, Helper("docker-credential-test", "slow.example.com"), 0)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
