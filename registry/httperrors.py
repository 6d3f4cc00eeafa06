"""What httpx raises, as errors of this package: one line, host and reason, no query of a URL."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from registry.deadlines import Deadlines
from registry.errors import ProtocolError, TransportError

CAUSES_LIMIT = 16


def host_of(url: httpx.URL) -> str:
    """``host[:port]`` for messages."""
    return url.netloc.decode("ascii", "replace").rpartition("@")[2]


@contextmanager
def http_errors(url: httpx.URL, limits: Deadlines) -> Iterator[None]:
    """Turn what httpx raises for ``url`` into errors of this package; ``limits`` were set."""
    host = host_of(url)
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise TransportError(f"{host}: no connection within {limits.connect_s:g} s") from error
    except httpx.TimeoutException as error:
        raise TransportError(f"{host}: no answer within {limits.first_byte_s:g} s") from error
    except httpx.ConnectError as error:
        reason, kind = _reason(error)
        raise kind(f"{host}: cannot connect: {reason}") from error
    except httpx.ProxyError as error:
        raise TransportError(f"{host}: the proxy refuses: {_reason(error)[0]}") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
        # UnicodeError: a host in a redirect that no name can be looked up for.
        raise TransportError(f"{host}: connection failed: {_reason(error)[0]}") from error


def _reason(error: BaseException) -> tuple[str, type[TransportError]]:
    """What the operating system or OpenSSL says, else httpx: wrappers between them say nothing.

    With it the kind of error: what is wrong with a peer's TLS will hardly be right the next time.
    """
    text = ""
    for _ in range(CAUSES_LIMIT):
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {error.verify_message[:200]}", ProtocolError
        if isinstance(error, socket.gaierror):
            return f"its name cannot be looked up: {error.strerror}", TransportError
        if isinstance(error, OSError):
            text = error.strerror or str(error)
        elif isinstance(error, httpx.HTTPError | httpx.InvalidURL | UnicodeError):
            text = text or str(error)
        cause = error.__cause__ or error.__context__
        if cause is None:
            break
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
        return "it does not speak TLS (plain HTTP must be asked for)", ProtocolError
    return text.splitlines()[0][:200] if text else type(error).__name__, TransportError
