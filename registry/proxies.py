"""Which HTTP proxy leads to a host: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``.

Pure. ``NO_PROXY`` is read as Go programs read it (golang.org/x/net/http/httpproxy): names with
their subdomains, ``.domain``, addresses, networks such as ``10.0.0.0/8``, each with an optional
port, and ``*``.
"""

import ipaddress
from collections.abc import Mapping

from registry.reference import is_loopback

DEFAULT_PORTS = {"http": 80, "https": 443}


def proxy_for(
    scheme: str, host: str, port: int | None, environment: Mapping[str, str]
) -> str | None:
    """The URL of the proxy for requests to a host; None to go there directly.

    It may hold a password. This machine's loopback is never asked through a proxy.

    Args:
        scheme: ``http`` or ``https``.
        host: name or address, without brackets.
        port: None for the scheme's own.
        environment: the variables of the process; lower-case names come first.
    """
    bracketed = f"[{host}]" if ":" in host else host
    if is_loopback(bracketed):
        return None
    proxy = _variable(f"{scheme}_proxy", environment) or _variable("all_proxy", environment)
    if not proxy:
        return None
    wanted = port or DEFAULT_PORTS[scheme]
    rules = _variable("no_proxy", environment).split(",")
    if any(_bypasses(rule.strip().lower(), host.lower().rstrip("."), wanted) for rule in rules):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return (environment.get(name) or environment.get(name.upper()) or "").strip()


def _bypasses(rule: str, host: str, port: int) -> bool:
    if rule in ("", "*"):
        return rule == "*"
    try:
        network = ipaddress.ip_network(rule, strict=False)
    except ValueError:
        pass
    else:
        return _in_network(host, network)
    name, colon, digits = rule.rpartition(":")
    if colon and digits.isdigit():
        if int(digits[:6]) != port:
            return False
        rule = name.strip("[]")
        if rule == host:
            return True
    rule = rule.removeprefix("*")
    if rule.startswith("."):
        return host.endswith(rule)
    return host == rule or host.endswith(f".{rule}")


def _in_network(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
