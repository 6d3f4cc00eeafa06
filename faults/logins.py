"""Faults of logins and of signed addresses: they change, expire, are refused; and stay secret."""

import json
import os
from collections.abc import Callable
from functools import partial
from urllib.parse import parse_qs, urlsplit

from faults.image import EVER, WARM
from faults.model import REFUSED, Fault
from faults.mounts import RIGHT, SHORT_S
from faults.servers import RegistryServer
from faults.stage import Stage
from tests.support.fake_login import PASSWORD, USER, FakeLogin, basic
from tests.support.fake_registry import FakeRegistry, mirror_table
from tests.support.http_server import Reply, Request

DEBUG = ("--log-level", "debug")
"""No secret may be in the longest of logs."""
SHORT = ("--timeout", SHORT_S, *DEBUG)


def protected(stage: Stage, login: FakeLogin) -> RegistryServer:
    """A registry that wants a login."""
    registry = stage.image.registry()
    registry.breaks = login.check

    def answer(request: Request) -> Reply:
        return login.give(request) if request.path == "/token" else registry.answer(request)

    server = stage.registry(answer=answer)
    server.registry = registry
    return server


def write_login(stage: Stage, host: str, password: str = PASSWORD) -> None:
    """Log in, as ``docker login`` does."""
    auth = basic(USER, password).removeprefix("Basic ")
    (stage.folder / "auth.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def logged_in(login: FakeLogin, happens: Callable[[FakeLogin], None], stage: Stage) -> str:
    """Something happens to a login while the image is mounted; then it is put right."""
    server = protected(stage, login)
    write_login(stage, server.host)
    with stage.mounted(server.host, *SHORT) as mount:
        before = mount.outcome(WARM)
        happens(login)
        seen = mount.outcome(EVER)
        login.breaks_tokens = None
        login.password = PASSWORD
        write_login(stage, server.host)
        mended = mount.recovers()
    return seen if (before, mended, seen) == (RIGHT,) * 3 else f"{before}, {seen}; mended: {mended}"


def break_tokens(login: FakeLogin) -> None:
    """The token service fails, and the token is not accepted any more."""
    login.breaks_tokens = Reply(500)
    login.withdraw()


def password_changed(stage: Stage) -> str:
    """The password is changed; the user logs in anew, and mounts nothing anew."""
    login = FakeLogin(tokens=False)
    server = protected(stage, login)
    write_login(stage, server.host)
    with stage.mounted(server.host, *SHORT) as mount:
        mount.outcome(WARM)
        login.password = "s3cret-password-2"
        old = mount.outcome(EVER)
        write_login(stage, server.host, login.password)
        return f"old login: {old}; new login: {mount.recovers()}"


def torn_file(stage: Stage) -> str:
    """The file of logins is half written when a new token is needed, and whole later."""
    login = FakeLogin()
    server = protected(stage, login)
    write_login(stage, server.host)
    with stage.mounted(server.host, *SHORT) as mount:
        mount.outcome(WARM)
        (stage.folder / "auth.json").write_text('{"auths": {"127')
        login.withdraw()
        seen = mount.outcome(EVER)
        blamed = mount.host()["wrong_answers"]
        write_login(stage, server.host)
        mended = mount.recovers()
    return f"{seen}, registry {'blamed' if blamed else 'not blamed'}; mended: {mended}"


def refused(tokens: bool, stage: Stage) -> str:
    """The password is wrong from the beginning."""
    server = protected(stage, FakeLogin(tokens=tokens))
    write_login(stage, server.host, "s3cret-password-1")
    return stage.refusal(server.host, *SHORT)


def none_known(stage: Stage) -> str:
    """A login is wanted, and nobody has logged in."""
    return stage.refusal(protected(stage, FakeLogin(tokens=False)).host, *SHORT)


def broken_helper(script: str, stage: Stage) -> str:
    """A credential helper that does not work."""
    server = protected(stage, FakeLogin())
    helper = stage.folder / "docker-credential-broken"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    stage.environment["PATH"] = f"{stage.folder}:{os.environ['PATH']}"
    (stage.folder / "auth.json").write_text(json.dumps({"credHelpers": {server.host: "broken"}}))
    return stage.refusal(server.host, *SHORT)


def not_mixed(stage: Stage) -> str:
    """A mirror asks for a login too, and has none."""
    login = FakeLogin(tokens=False)
    server = protected(stage, login)
    greedy = FakeLogin(tokens=False, password="another")
    mirror = protected(stage, greedy)
    write_login(stage, server.host)
    options = stage.hosts(server.host, mirror_table(f"http://{mirror.host}"))
    with stage.mounted(server.host, *options, *DEBUG) as mount:
        seen = mount.outcome()
    told = [request for request in mirror.requests if "authorization" in request.headers]
    return f"{seen}, mirror {'told a login' if told else 'told nothing'}"


class Storage:
    """Where a registry sends its readers: addresses are signed, and good for some requests."""

    def __init__(self, stage: Stage, good_for: int) -> None:
        """Sign addresses that are good for so many requests each."""
        self.good_for = good_for
        self.used: dict[str, int] = {}
        self.signed = 0
        self.withdrawn = 0
        """Signatures up to this number are not good any more."""
        self.status = 403
        self.registry: FakeRegistry = stage.image.registry()
        self.server = stage.registry(answer=self.answer)

    def answer(self, request: Request) -> Reply:
        """Answer as S3 and its like do."""
        [signature] = parse_qs(urlsplit(request.target).query).get("signature", ["none"])
        self.used[signature] = self.used.get(signature, 0) + 1
        number = int(signature.rpartition("-")[2]) if signature != "none" else -1
        if number <= self.withdrawn or self.used[signature] > self.good_for:
            return Reply(self.status, b"<Error><Code>AccessDenied</Code></Error>")
        return self.registry.answer(request)

    def sign(self, request: Request, reply: Reply) -> Reply:
        """The registry's answers: blobs lie elsewhere."""
        if "/blobs/" not in request.path:
            return reply
        self.signed += 1
        where = f"http://{self.server.host}{request.path}?signature=s3cret-signature-{self.signed}"
        return Reply(307, headers={"Location": where})


def signed(good_for: int, status: int, stage: Stage) -> str:
    """Signed addresses expire while they are used."""
    storage = Storage(stage, good_for)
    storage.status = status
    login = FakeLogin()
    server = protected(stage, login)
    server.registry.breaks = lambda request, reply: (
        storage.sign(request, reply)
        if login.check(request, reply).status != 401
        else login.challenge()
    )
    write_login(stage, server.host)
    with stage.mounted(server.host, *DEBUG) as mount:
        seen = [mount.outcome(WARM)]
        storage.withdrawn = storage.signed
        seen.append(mount.outcome())
    told = [request for request in storage.server.requests if "authorization" in request.headers]
    words = " then ".join(dict.fromkeys(seen))
    return f"{words}, storage {'told a login' if told else 'told nothing'}"


def storage_dies(stage: Stage) -> str:
    """The storage is gone for some time; the registry is there."""
    storage = Storage(stage, 1000)
    server = stage.registry()
    server.registry.breaks = storage.sign
    with stage.mounted(server.host, *SHORT) as mount:
        mount.outcome(WARM)
        storage.server.stop()
        seen = mount.outcome(EVER)
        storage.server.start()
        return f"{seen}; mended: {mount.recovers()}"


def storage_moves(stage: Stage) -> str:
    """The registry sends readers to another storage from now on, and the old one is gone."""
    old, new = Storage(stage, 1000), Storage(stage, 1000)
    server = stage.registry()
    server.registry.breaks = old.sign
    with stage.mounted(server.host, *DEBUG) as mount:
        mount.outcome(WARM)
        server.registry.breaks = new.sign
        old.server.stop()
        return mount.outcome()


LOST = "right, EIO; mended: right"
FAULTS = (
    Fault(
        "token-withdrawn",
        "a token is not accepted any more",
        RIGHT,
        partial(logged_in, FakeLogin(), FakeLogin.withdraw),
    ),
    Fault(
        "token-expires",
        "tokens live for a second",
        RIGHT,
        partial(logged_in, FakeLogin(lifetime_s=1), lambda login: None),
    ),
    Fault(
        "token-service",
        "the token service fails when a new token is needed",
        LOST,
        partial(logged_in, FakeLogin(), break_tokens),
    ),
    Fault(
        "password",
        "the password is changed; a new login follows",
        "old login: EIO; new login: right",
        password_changed,
    ),
    Fault(
        "login-torn",
        "the file of logins is half written when a new token is needed",
        "EIO, registry not blamed; mended: right",
        torn_file,
    ),
    Fault("login-refused", "the password is wrong", REFUSED + "login", partial(refused, False)),
    Fault(
        "token-refused",
        "the token service does not accept the password",
        REFUSED + "login",
        partial(refused, True),
    ),
    Fault("login-none", "a login is wanted and there is none", REFUSED + "login", none_known),
    Fault(
        "helper-fails",
        "a credential helper ends with an error",
        REFUSED + "docker-credential-broken",
        partial(broken_helper, "echo no; exit 1"),
    ),
    Fault(
        "helper-hangs",
        "a credential helper never ends",
        REFUSED + "no answer within 3 s",
        partial(broken_helper, "exec sleep 60"),
    ),
    Fault(
        "helper-garbage",
        "a credential helper says no JSON",
        REFUSED + "docker-credential-broken",
        partial(broken_helper, "echo s3cret-password"),
    ),
    Fault(
        "logins-apart",
        "a mirror asks for the registry's login",
        "right, mirror told nothing",
        not_mixed,
    ),
    Fault(
        "signed-expires",
        "signed addresses expire (403)",
        "right, storage told nothing",
        partial(signed, 1000, 403),
    ),
    Fault(
        "signed-once",
        "signed addresses are good for one request (403)",
        "right, storage told nothing",
        partial(signed, 1, 403),
    ),
    Fault(
        "signed-400",
        "signed addresses expire (400, as S3 does for tokens)",
        "right, storage told nothing",
        partial(signed, 2, 400),
    ),
    Fault(
        "storage-dies",
        "where readers are sent to is gone for some time",
        "EIO; mended: right",
        storage_dies,
    ),
    Fault(
        "storage-moves", "readers are sent elsewhere, the old place is gone", RIGHT, storage_moves
    ),
)
