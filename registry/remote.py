"""The client for a repository; apart from ``registry.transports``, since local images need none."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from registry.client import RegistryClient
from registry.endpoint import Endpoint
from registry.hostfiles import find_hosts
from registry.interfaces import DEFAULT_ACCESS, Access
from registry.names import use_names
from registry.reference import Reference
from registry.wire import Wire


@asynccontextmanager
async def open_client(
    reference: Reference, access: Access = DEFAULT_ACCESS
) -> AsyncIterator[RegistryClient]:
    """A client for one repository, at the hosts that this machine's configuration names.

    Raises:
        ConfigurationError: that configuration cannot be used.
    """
    use_names()
    hosts = await trio.to_thread.run_sync(find_hosts, reference, access.hosts_dirs)
    async with AsyncExitStack() as stack:
        endpoints = []
        for config in hosts:
            wire = await stack.enter_async_context(Wire(access, config))
            endpoints.append(Endpoint(reference, wire, config))
        yield RegistryClient(reference, access, endpoints)
