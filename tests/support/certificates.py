"""A certificate authority and its certificates, made by ``openssl``.

authority = Authority.make(folder)
certificate = authority.issue("server")                  # for 127.0.0.1 and localhost
stale = authority.issue("stale", days=-1)                # expired
foreign = authority.issue("foreign", names="DNS:elsewhere.example")
"""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

THIS_MACHINE = "IP:127.0.0.1,DNS:localhost"


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: Path
    key: Path

    def server_context(self, clients: Path | None = None) -> ssl.SSLContext:
        """For a server; with ``clients``, only those who have a certificate of that authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients)
        return context


@dataclass(frozen=True)
class Authority:
    """An authority that only tests trust."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder)
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "3650", "-subj", "/CN=authority under test"),
            *("-keyout", folder / "ca.key", "-out", made.certificate),
        )
        return made

    def issue(self, name: str, names: str = THIS_MACHINE, days: int = 3650) -> Issued:
        """A certificate for ``names``; with negative ``days`` it has expired."""
        issued = Issued(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        request, extension = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={names}\n")
        openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-subj", f"/CN={name}", "-keyout", issued.key, "-out", request),
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate),
            *("-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", str(days)),
            *("-extfile", extension, "-out", issued.certificate),
        )
        return issued
