"""Faults on the way: TLS, names, proxies; lines that delay, narrow, stall, reset and corrupt."""

import contextlib
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults.image import EVER, ONCE, REPOSITORY, TAG, WARM
from faults.model import REFUSED, Fault
from faults.mounts import RIGHT, SHORT_S
from faults.proxy import Shape
from faults.servers import RegistryServer
from faults.stage import Stage
from tests.support.broken_answers import sent_to
from tests.support.http_server import Reply

SHORT = ("--timeout", SHORT_S)


# Lines


def shaped(shape: Shape, most: int | None, stage: Stage) -> str:
    """Everything goes through a proxy that shapes it, the mount as well."""
    proxy = stage.proxy(stage.registry().host)
    proxy.most = most
    with stage.mounted(proxy.host, "--timeout", 9) as mount:
        proxy.shape = shape
        seen = [mount.outcome(name) for name in (WARM, ONCE, EVER)]
        proxy.shape = Shape()
        seen.append(mount.recovers())
    words = " then ".join(dict.fromkeys(seen))
    harmless = shape.stall_at is None and shape.reset_at is None and shape.corrupt_at is None
    return words if harmless or proxy.hit else f"{words}, but it never hit"


def hangs(shape: Shape, stage: Stage) -> str:
    """A line that nothing comes through, then one that works again."""
    proxy = stage.proxy(stage.registry().host)
    with stage.mounted(proxy.host, *SHORT) as mount:
        mount.outcome(WARM)
        proxy.shape = shape
        gone, kept = mount.outcome(EVER), mount.outcome(WARM)
        proxy.shape = Shape()
        return f"{gone}, cached {kept}; mended: {mount.recovers()}"


def corrupted_tls(stage: Stage) -> str:
    """One bit of what TLS sends is flipped."""
    certificate = stage.shared.authority.issue(f"corrupted-{stage.folder.name}")
    server = stage.registry(tls=certificate.server_context())
    proxy = stage.proxy(server.host)
    proxy.most = 3
    options = stage.hosts(proxy.host, tls_text(stage, proxy.host))
    with stage.mounted(proxy.host, *options) as mount:
        proxy.shape = Shape(corrupt_at=30_000)
        seen = mount.outcome()
    return seen if proxy.hit else f"{seen}, but it never hit"


# TLS


def tls_text(stage: Stage, host: str, more: str = "") -> str:
    """A ``hosts.toml`` for a registry whose certificate is of the suite's authority."""
    return f'server = "https://{host}"\nca = "{stage.shared.authority.certificate}"\n{more}'


def tls_registry(stage: Stage, **how: object) -> RegistryServer:
    """A registry with a certificate: for this machine and of today, unless told otherwise."""
    issued = stage.shared.authority.issue(stage.folder.name, **how)  # type: ignore[arg-type]
    return stage.registry(tls=issued.server_context())


def with_tls(stage: Stage) -> str:
    """The control: nothing is wrong."""
    server = tls_registry(stage)
    with stage.mounted(
        server.host, *stage.hosts(server.host, tls_text(stage, server.host))
    ) as mount:
        return mount.outcome()


def bad_certificate(how: dict[str, object], stage: Stage) -> str:
    """A certificate that must be refused; nothing may be told to who has it."""
    server = tls_registry(stage, **how)
    seen = stage.refusal(
        server.host, *stage.hosts(server.host, tls_text(stage, server.host)), *SHORT
    )
    return f"{seen}, and it was asked" if server.requests else seen


def unknown_authority(stage: Stage) -> str:
    """Nobody vouches for the certificate."""
    server = tls_registry(stage)
    text = f'server = "https://{server.host}"'
    seen = stage.refusal(server.host, *stage.hosts(server.host, text), *SHORT)
    return f"{seen}, and it was asked" if server.requests else seen


def no_tls(stage: Stage) -> str:
    """The registry speaks plain HTTP only, where TLS is configured."""
    server = stage.registry()
    seen = stage.refusal(
        server.host, *stage.hosts(server.host, tls_text(stage, server.host)), *SHORT
    )
    return f"{seen}, and it was asked in plain" if server.requests else seen


def no_client_certificate(stage: Stage) -> str:
    """The registry wants a certificate of its clients, and none is configured."""
    issued = stage.shared.authority.issue(stage.folder.name)
    server = stage.registry(tls=issued.server_context(clients=stage.shared.authority.certificate))
    text = tls_text(stage, server.host)
    seen = stage.refusal(server.host, *stage.hosts(server.host, text), *SHORT)
    return f"{seen}, and it was asked" if server.requests else seen


def weak_tls(stage: Stage) -> str:
    """The registry knows nothing but a suite without encryption."""
    issued = stage.shared.authority.issue(stage.folder.name)
    context = issued.server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0")
    server = stage.registry(tls=context)
    text = tls_text(stage, server.host)
    return stage.refusal(server.host, *stage.hosts(server.host, text), *SHORT)


def downgrade(stage: Stage) -> str:
    """A registry with TLS sends readers to plain HTTP."""
    plain, server = stage.registry(), tls_registry(stage)
    options = (*stage.hosts(server.host, tls_text(stage, server.host)), *SHORT)
    with stage.mounted(server.host, *options) as mount:
        server.registry.breaks = lambda request, reply: sent_to(
            f"http://{plain.host}{request.target}"
        )
        seen = mount.outcome(EVER)
        server.registry.breaks = lambda request, reply: reply
        mended = mount.recovers()
    asked = "plain server asked" if plain.requests else "plain server never asked"
    return f"{seen}, {asked}; mended: {mended}"


def certificate_changes(stage: Stage) -> str:
    """The certificate is replaced by an expired one while the image is mounted, then renewed."""
    server = tls_registry(stage)
    good = server.tls
    expired = stage.shared.authority.issue(f"{stage.folder.name}-expired", days=-1)
    options = (*stage.hosts(server.host, tls_text(stage, server.host)), *SHORT)
    with stage.mounted(server.host, *options) as mount:
        mount.outcome(WARM)
        server.stop()
        server.tls = expired.server_context()
        server.start()
        seen, kept = mount.outcome(EVER), mount.outcome(WARM)
        server.stop()
        server.tls = good
        server.start()
        return f"{seen}, cached {kept}; mended: {mount.recovers()}"


# Names

NAME = "registry.faults.test"
NAMESPACE = """
mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"
"""


@contextlib.contextmanager
def own_names(stage: Stage, hosts: str) -> Iterator[tuple[object, ...]]:
    """Start a command where names mean what ``hosts`` says, and no name server answers."""
    folder = stage.folder
    (folder / "hosts").write_text(hosts)
    (folder / "resolv.conf").write_text("nameserver 127.0.0.253\noptions timeout:1 attempts:1\n")
    yield ("unshare", "--mount", "sh", "-c", NAMESPACE, folder)


def rewrite(path: Path, text: str) -> None:
    """Change a file in place: it is mounted elsewhere as well."""
    path.write_text(text)


def unknown_name(stage: Stage) -> str:
    """The registry's name means nothing."""
    with own_names(stage, "127.0.0.1 localhost\n") as prefix:
        return stage.refusal(f"{NAME}/{REPOSITORY}:{TAG}", *SHORT, prefix=prefix)


def name_lost(stage: Stage) -> str:
    """The name is lost while the image is mounted, and connections are closed meanwhile."""
    server = stage.registry()
    port = server.host.rpartition(":")[2]
    with own_names(stage, f"127.0.0.1 {NAME}\n") as prefix:
        name = f"{NAME}:{port}/{REPOSITORY}:{TAG}"
        with stage.mounted(name, "--plain-http", prefix=prefix) as mount:
            before = mount.outcome(WARM)
            rewrite(stage.folder / "hosts", "")
            server.stop()
            server.start()
            return f"{before} then {mount.outcome()}"


def two_addresses(stage: Stage) -> str:
    """The name has two addresses, and nobody listens at the first."""
    server = stage.registry()
    port = server.host.rpartition(":")[2]
    with own_names(stage, f"127.0.0.77 {NAME}\n127.0.0.1 {NAME}\n") as prefix:
        name = f"{NAME}:{port}/{REPOSITORY}:{TAG}"
        with stage.mounted(name, "--plain-http", prefix=prefix) as mount:
            return mount.outcome()


def moves(stage: Stage) -> str:
    """The name means another address from some moment on (as after a failover by DNS)."""
    server = stage.registry(address="127.0.0.1")
    port = server.host.rpartition(":")[2]
    with own_names(stage, f"127.0.0.1 {NAME}\n") as prefix:
        name = f"{NAME}:{port}/{REPOSITORY}:{TAG}"
        with stage.mounted(name, "--plain-http", "--timeout", "50", prefix=prefix) as mount:
            before = mount.outcome(WARM)
            server.stop()
            server.address = "127.0.0.78"
            server.start()
            rewrite(stage.folder / "hosts", f"127.0.0.78 {NAME}\n")
            return f"{before} then {mount.recovers()}"


# Proxies


def https_proxy(answer: str, stage: Stage) -> str:
    """A proxy between us and a registry elsewhere that does not do its work."""
    proxy = stage.registry(answer=lambda request: Reply(int(answer)))
    stage.environment["HTTPS_PROXY"] = f"http://{proxy.host}"
    return stage.refusal(f"{NAME}/{REPOSITORY}:{TAG}", *SHORT)


def no_proxy(stage: Stage) -> str:
    """There is no proxy where one is configured."""
    proxy = stage.registry()
    proxy.stop()
    stage.environment["HTTPS_PROXY"] = f"http://{proxy.host}"
    return stage.refusal(f"{NAME}/{REPOSITORY}:{TAG}", *SHORT)


def line(name: str, does: str, shape: Shape, most: int | None = None) -> Fault:
    """A line that readers only notice by the time it takes."""
    return Fault(f"line-{name}", does, RIGHT, partial(shaped, shape, most))


MENDED = "EIO, cached right; mended: right"
FAULTS = (
    line("delay", "each piece comes 100 ms later", Shape(delay_s=0.1)),
    line("narrow", "256 KiB/s", Shape(bytes_per_s=256 << 10)),
    line("reset", "each connection is reset after 60 KB", Shape(reset_at=60_000)),
    line("corrupt", "one bit is flipped every 30 KB, three times", Shape(corrupt_at=30_000), 3),
    line("stall", "two connections stall after 20 KB", Shape(stall_at=20_000), 2),
    Fault("line-dead", "nothing comes any more", MENDED, partial(hangs, Shape(stall_at=0))),
    Fault("line-trickle", "1 KiB/s", MENDED, partial(hangs, Shape(bytes_per_s=1 << 10))),
    Fault("tls", "nothing is wrong (control)", RIGHT, with_tls),
    Fault("tls-corrupt", "one bit below TLS is flipped, three times", RIGHT, corrupted_tls),
    Fault(
        "tls-expired",
        "the certificate has expired",
        REFUSED + "certificate has expired",
        partial(bad_certificate, {"days": -1}),
    ),
    Fault(
        "tls-other-name",
        "the certificate is for another host",
        REFUSED + "mismatch",
        partial(bad_certificate, {"names": "DNS:elsewhere.example"}),
    ),
    Fault(
        "tls-unknown",
        "nobody vouches for the certificate",
        REFUSED + "certificate is refused",
        unknown_authority,
    ),
    Fault("tls-none", "plain HTTP where TLS is configured", REFUSED + "TLS", no_tls),
    Fault(
        "tls-client",
        "a client certificate is wanted",
        REFUSED + "connection failed",
        no_client_certificate,
    ),
    Fault("tls-weak", "no suite but one without encryption", REFUSED + "cannot connect", weak_tls),
    Fault(
        "tls-downgrade",
        "redirects from HTTPS to HTTP",
        "EIO, plain server never asked; mended: right",
        downgrade,
    ),
    Fault("tls-expires", "the certificate expires while mounted", MENDED, certificate_changes),
    Fault("dns-unknown", "the registry's name is unknown", REFUSED + NAME, unknown_name),
    Fault("dns-lost", "the name server dies while mounted", "right then right", name_lost),
    Fault("dns-two", "the first of two addresses is dead", RIGHT, two_addresses),
    Fault(
        "dns-moves", "the name moves to another address while mounted", "right then right", moves
    ),
    Fault("proxy-502", "HTTPS_PROXY answers 502", REFUSED + "502", partial(https_proxy, "502")),
    Fault("proxy-407", "HTTPS_PROXY wants a login", REFUSED + "407", partial(https_proxy, "407")),
    Fault("proxy-none", "nobody listens at HTTPS_PROXY", REFUSED + "cannot connect", no_proxy),
)
