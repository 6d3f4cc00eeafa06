"""TLS contexts: the machine's authorities, and what a host's configuration adds."""

import ssl

import httpx

from registry.errors import ConfigurationError
from registry.hosts import HostConfig


def default_context() -> ssl.SSLContext:
    """The machine's own certificate authorities, else those that come with httpx."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return ssl.create_default_context()
    return httpx.create_ssl_context()


def host_context(config: HostConfig) -> ssl.SSLContext:
    """For the host itself (blocks for some milliseconds).

    Raises:
        ConfigurationError: a file of its configuration does not work.
    """
    context = elsewhere_context(config)
    for certificate, key in config.client:
        try:
            # A key with a passphrase must fail, not ask whoever sits at the terminal.
            context.load_cert_chain(certificate, key or None, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise _broken(config, f"client certificate {certificate}", error) from error
    if config.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def elsewhere_context(config: HostConfig) -> ssl.SSLContext:
    """For where that host sends us: its authorities are trusted there too, nothing else.

    A private registry's storage and token service usually have certificates of the same authority.

    Raises:
        ConfigurationError: a file of its configuration does not work.
    """
    context = default_context()
    for name in config.ca:
        try:
            context.load_verify_locations(cafile=name)
        except (OSError, ssl.SSLError) as error:
            raise _broken(config, f"ca {name}", error) from error
    return context


def no_context() -> ssl.SSLContext:
    """Trusts nobody: a slip that sent HTTPS through a client for plain HTTP would fail."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _broken(config: HostConfig, what: str, error: OSError) -> ConfigurationError:
    reason = error.strerror or str(error) or "no certificate in it"
    return ConfigurationError(f"{config.host}: {what}: {reason[:200]}")
