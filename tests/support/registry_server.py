"""Debian's docker-registry on a free loopback port, for tests and examples.

with running_registry(folder) as registry:
    ...  # registry.host is "127.0.0.1:PORT"
"""

import contextlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

USERNAME, PASSWORD = "tester", "not a secret"
# bcrypt of PASSWORD, cost 5: crypt.crypt(PASSWORD, crypt.mksalt(METHOD_BLOWFISH, rounds=32))
_HTPASSWD = f"{USERNAME}:$2b$05$joQPyVCQeSwnuJcc.xXmDO7..tYykUUaA43MY.lddNWggw9FIWj7m\n"
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@dataclass
class TokenAuthority:
    """The token service that a registry trusts; see ``tests.support.token_server``."""

    realm: str
    service: str
    issuer: str
    certificate: Path


@dataclass
class Certificate:
    """A self-signed certificate for 127.0.0.1 and localhost."""

    key: Path
    certificate: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificate":
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder / "key.pem", folder / "certificate.pem")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650"),
                *("-subj", "/CN=under test", "-addext"),
                "subjectAltName=IP:127.0.0.1,DNS:localhost",
                *("-keyout", made.key, "-out", made.certificate),
            ],
            check=True,
            capture_output=True,
        )
        return made


@dataclass
class RegistryServer:
    """A registry that runs."""

    host: str
    storage: Path
    process: subprocess.Popen[str] = field(repr=False)
    log: list[str] = field(default_factory=list, repr=False)

    def stop(self) -> None:
        """End it at once; it may be called twice."""
        self.process.kill()
        self.process.wait()

    def blob_path(self, digest: str) -> Path:
        """The file that holds a blob, for tests that break it."""
        algorithm, encoded = digest.split(":")
        root = self.storage / "docker/registry/v2/blobs"
        return root / algorithm / encoded[:2] / encoded / "data"


@contextlib.contextmanager
def running_registry(
    folder: Path,
    *,
    basic: bool = False,
    token: TokenAuthority | None = None,
    tls: Certificate | None = None,
    port: int = 0,
) -> Iterator[RegistryServer]:
    """Start a registry that stores below ``folder``; end it with the block.

    With ``basic`` it wants ``USERNAME`` and ``PASSWORD``; with ``token`` that service's tokens;
    with ``tls`` it speaks HTTPS only; ``port`` is any free one, unless it is named.
    """
    program = shutil.which("docker-registry")
    assert program, "docker-registry is not installed (Debian package docker-registry)"
    folder.mkdir(parents=True, exist_ok=True)
    storage = folder / "storage"
    configuration: dict[str, object] = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": True}, "level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if tls:
        configuration["http"] = {
            "addr": f"127.0.0.1:{port}",
            "tls": {"certificate": str(tls.certificate), "key": str(tls.key)},
        }
    if basic:
        (folder / "htpasswd").write_text(_HTPASSWD)
        configuration["auth"] = {
            "htpasswd": {"realm": "registry under test", "path": str(folder / "htpasswd")}
        }
    if token:
        configuration["auth"] = {
            "token": {
                "realm": token.realm,
                "service": token.service,
                "issuer": token.issuer,
                "rootcertbundle": str(token.certificate),
            }
        }
    (folder / "config.yml").write_text(json.dumps(configuration))  # JSON is YAML
    process = subprocess.Popen(
        [program, "serve", str(folder / "config.yml")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log: list[str] = []
    reader = None
    try:
        for line in process.stderr:
            log.append(line)
            if match := _LISTENING.search(line):
                break
        else:
            raise AssertionError(f"docker-registry ended: {''.join(log[-5:])}")
        # Somebody must go on reading, or the registry blocks when the pipe is full.
        reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
        reader.start()
        yield RegistryServer(match[1], storage, process, log)
    finally:
        process.kill()
        process.wait()
        if reader is not None:
            reader.join()
        process.stderr.close()
