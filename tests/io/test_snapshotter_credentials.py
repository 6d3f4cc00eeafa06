"""Credentials that Kubernetes hands over, as the registry client then finds them."""

import json
import stat
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from lazyfs.errors import LazyfsError
from lazyfs.snapshotter.api import cri_pb2 as api
from lazyfs.snapshotter.credentials import (
    CredentialBook,
    Providers,
    matches,
    parse_config,
    seconds,
)
from lazyfs.snapshotter.criproxy import ImageProxy
from lazyfs.snapshotter.server import start_server
from registry.credentials import Credentials
from registry.keychain import look_up

IMAGE = "registry.example:5000/team/app:1"
PULL = "/runtime.v1.ImageService/PullImage"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CredentialBook:
    made = CredentialBook(tmp_path / "auth.json")
    monkeypatch.setenv("LAZYFS_AUTH_FILE", str(made.path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return made


async def known() -> Credentials | None:
    return await look_up("registry.example:5000", "team/app", 5)


async def test_what_is_kept_is_found_before_dockers_file(book: CredentialBook, tmp_path: Path):
    docker = tmp_path / "docker"
    docker.mkdir()
    auths = {"registry.example:5000": {"username": "docker", "password": "d"}}
    (docker / "config.json").write_text(json.dumps({"auths": auths}))
    assert await known() == Credentials("docker", "d")
    book.add(IMAGE, Credentials("cri", "c"))
    assert await known() == Credentials("cri", "c")
    assert await look_up("registry.example:5000", "other", 5) == Credentials("docker", "d")
    assert stat.S_IMODE(book.path.stat().st_mode) == 0o600


async def test_a_book_goes_on_after_a_restart(book: CredentialBook):
    book.add(IMAGE, Credentials(registry_token="t"))
    CredentialBook(book.path).add("registry.example:5000/b", Credentials("u", "p"))
    assert await known() == Credentials(registry_token="t")


def test_a_broken_book_is_begun_anew(tmp_path: Path):
    path = tmp_path / "auth.json"
    path.write_text('{"auths": 7')
    CredentialBook(path).add(IMAGE, Credentials("u", "p"))
    assert "registry.example:5000/team/app" in json.loads(path.read_text())["auths"]


class Upstream(grpc.GenericRpcHandler):
    """A containerd that notes what comes."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def service(self, handler_call_details):
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.seen.append(request)
            if b"denied" in request:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
            return api.PullImageResponse(image_ref="it").SerializeToString()

        if "Image" in handler_call_details.method:
            return grpc.unary_unary_rpc_method_handler(answer)
        return None


@pytest.fixture
def proxied(book: CredentialBook, tmp_path: Path) -> Iterator[tuple[Upstream, grpc.Channel]]:
    upstream = Upstream()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((upstream,))
    server.add_insecure_port(f"unix:{tmp_path}/up.sock")
    server.start()
    proxy = ImageProxy(tmp_path / "up.sock", book)
    front = start_server(tmp_path / "front.sock", [proxy])
    with grpc.insecure_channel(f"unix:{tmp_path}/front.sock") as channel:
        yield upstream, channel
    front.stop(None).wait()
    proxy.close()
    server.stop(None).wait()


def call(channel: grpc.Channel, method: str, request: bytes) -> bytes:
    passed: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return passed(request, timeout=10)


async def test_a_pulls_credentials_are_kept_on_their_way(
    proxied: tuple[Upstream, grpc.Channel], book: CredentialBook
):
    upstream, channel = proxied
    auth = api.AuthConfig(username="u", password="p")
    request = api.PullImageRequest(image=api.ImageSpec(image=IMAGE), auth=auth).SerializeToString()
    request += b"\xfa\x3e\x01x"  # a field that we do not know goes through as well
    answer = call(channel, PULL, request)
    assert api.PullImageResponse.FromString(answer).image_ref == "it"
    assert upstream.seen == [request]
    assert await known() == Credentials("u", "p")


def test_an_error_of_containerd_is_passed_on(proxied: tuple[Upstream, grpc.Channel]):
    _, channel = proxied
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "/runtime.v1.ImageService/RemoveImage", b"denied")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "no"


def test_other_services_are_not_passed_on(proxied: tuple[Upstream, grpc.Channel]):
    upstream, channel = proxied
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "/runtime.v1.RuntimeService/ImageVersion", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert upstream.seen == []


CONFIG = """
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.example:5000/team"]
  defaultCacheDuration: 1h
  args: [get]
  env: [{name: SECRET, value: s3}]
"""

PROGRAM = """#!/bin/sh
[ "$1" = get ] || exit 1
cat >> "$0.asked"
echo '{"kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "cacheDuration": "10m",
"auth": {"*.example:5000": {"username": "wide", "password": "w"},
         "registry.example:5000/team": {"username": "narrow", "password": "'"$SECRET"'"}}}'
"""


async def test_a_provider_is_asked_once_while_its_answer_holds(
    book: CredentialBook, tmp_path: Path
):
    (tmp_path / "provider").write_text(PROGRAM)
    (tmp_path / "provider").chmod(0o755)
    (tmp_path / "config.yaml").write_text(CONFIG)
    providers = Providers.load(tmp_path / "config.yaml", tmp_path, book)
    for _ in range(2):
        providers.ask_for(IMAGE)
    providers.renew()
    providers.ask_for("elsewhere.org/app")
    asked = (tmp_path / "provider.asked").read_text()
    assert json.loads(asked) == {
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest",
        "image": IMAGE,
    }
    assert await known() == Credentials("narrow", "s3")


async def test_a_provider_that_fails_gives_nothing(book: CredentialBook, tmp_path: Path):
    (tmp_path / "provider").write_text("#!/bin/sh\ncat > /dev/null\necho '[]'\n")
    (tmp_path / "provider").chmod(0o755)
    Providers(parse_config(CONFIG.encode(), tmp_path, "config"), book).ask_for(IMAGE)
    assert await known() is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "kind: Pod\napiVersion: v1",
        CONFIG.replace("provider\n", "../provider\n"),
        CONFIG.replace("1h", "soon"),
        "a: [",
    ],
)
def test_what_is_no_configuration_is_refused(text: str, tmp_path: Path):
    with pytest.raises(LazyfsError):
        parse_config(text.encode(), tmp_path, "config")


@pytest.mark.parametrize(
    ("pattern", "image", "fits"),
    [
        ("*.example", "a.example/x", True),
        ("*.example", "a.b.example/x", False),
        ("example", "example:5000/x", False),
        ("r.example/a/b", "r.example/a/b/c", True),
        ("r.example/b", "r.example/a/b", False),
        ("https://r.example", "r.example/a", True),
        ("docker.io", "busybox", True),
    ],
)
def test_patterns_match_as_kubelets(pattern: str, image: str, fits: bool):
    assert matches(pattern, image) is fits


def test_durations_are_those_of_go():
    assert seconds("1h2m3.5s", 0) == 3723.5
    assert seconds("0", 7) == 0
    assert seconds(None, 7) == 7
