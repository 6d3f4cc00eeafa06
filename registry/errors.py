"""The errors of the registry client.

    RegistryError                   never raised itself
    ├── InvalidReferenceError       a name that means no image
    ├── ConfigurationError          a hosts.toml, or a file that it names, that does not work
    ├── CredentialError             a credential file or helper that does not work
    ├── TransportError              no answer, a broken one, or a local file that fails
    │   └── ProtocolError           an answer that breaks HTTP, or leads where we must not go
    ├── ResponseError               the registry answered, and refused
    │   ├── DeniedError             not allowed (401, 403)
    │   ├── NotFoundError           no such repository, manifest or blob (404)
    │   └── TooManyRequestsError    rate limit (429)
    └── ContentError                not the promised bytes: digest, size, limit, JSON
        └── NoRangesError           the server sends whole blobs only, and this one is too large
            └── OneRangeError       the server sends one range by an answer, not several

A message is one line that a person can act on. It names host and repository, or the file; it never
holds a credential or the query of a URL (signed URLs carry their signature there).
"""


class RegistryError(Exception):
    """Base of every error that the registry package raises on purpose."""

    host: str | None = None
    """Which host failed, once an operation has given up."""
    attempts: int | None = None
    """How often its operation was tried by then, at all hosts."""


class InvalidReferenceError(RegistryError):
    """The name of an image breaks the grammar, or names what cannot be used so."""


class ConfigurationError(RegistryError):
    """What says how to reach a host cannot be used."""


class CredentialError(RegistryError):
    """A credential file cannot be read, or a credential helper failed."""


class TransportError(RegistryError):
    """No answer, a cut one, or a local file that cannot be read; another try may work."""


class ProtocolError(TransportError):
    """An answer that breaks HTTP or the distribution specification; another try hardly helps."""


class ContentError(RegistryError):
    """The bytes are not those that were promised, or pass a limit."""


class NoRangesError(ContentError):
    """The server gives blobs as a whole only, and too much would be thrown away."""


class OneRangeError(NoRangesError):
    """The server does not give several ranges by one answer; it may give them one by one."""


class ResponseError(RegistryError):
    """The registry answered, but not with what was asked for."""

    def __init__(
        self, message: str, *, status: int, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 404 also where a local layout lacks something."""
        self.code = code
        """Error code of the distribution specification, such as ``MANIFEST_UNKNOWN``, or empty."""
        self.retry_after_s = retry_after_s
        """Seconds after which the registry wants to be asked again, if it said so."""


class DeniedError(ResponseError):
    """The credentials at hand do not allow it."""


class NotFoundError(ResponseError):
    """No such repository, manifest or blob."""


class TooManyRequestsError(ResponseError):
    """The registry limits the rate of requests."""
