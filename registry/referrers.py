"""What refers to an image, such as signatures (distribution-spec, "Listing Referrers").

A registry that keeps no such lists has a tag in the place of each.
"""

import re

import httpx

from registry.attempts import Attempts
from registry.client import RegistryClient
from registry.digest import Digest
from registry.endpoint import Endpoint, pull_scope, refuse_page
from registry.errors import ContentError, ProtocolError, ResponseError
from registry.hosts import Capability
from registry.httperrors import host_of
from registry.manifest import MANIFEST_LIMIT_BYTES, Descriptor, Index, decode_index, describe
from registry.mediatype import OCI_INDEX
from registry.referrertag import add_referrer, fallback_tag
from registry.wire import origin

PAGES_LIMIT = 32
REFERRERS_LIMIT = 4096
UNKNOWN_STATUSES = frozenset({400, 404, 405, 406, 501})
"""What registries answer that do not know the list."""
_OK, _CREATED, _NOT_FOUND = 200, 201, 404
_ACCEPT = {"Accept": OCI_INDEX}
_NEXT = re.compile(r'<([^<>]{1,4096})>\s*;\s*rel="?next"?', re.ASCII)


async def list_referrers(
    client: RegistryClient, subject: Digest, artifact_type: str = ""
) -> tuple[Descriptor, ...]:
    """Descriptors of the manifests that refer to ``subject``; of one type only, if it is given.

    Nothing proves that the list is complete or right: whoever uses an entry checks what it names.

    Raises:
        RegistryError: the registry does not answer, or with something else than a list.
    """

    async def once(endpoint: Endpoint) -> tuple[Descriptor, ...] | ContentError:
        try:
            found = await _ask_list(endpoint, subject, artifact_type)
        except ResponseError as error:
            if error.status not in UNKNOWN_STATUSES:
                raise
            index = await fetch_fallback(endpoint, subject)
            found = () if index is None else index.manifests
        except ContentError as error:
            # Proxies answer anything to what they do not know: that says nothing of their blobs.
            return error
        # A registry need not filter.
        return tuple(d for d in found if artifact_type in ("", d.artifact_type))

    found = await client.run(once, client.attempts(Capability.REFERRERS))
    if isinstance(found, ContentError):
        raise found
    return found


async def _ask_list(
    endpoint: Endpoint, subject: Digest, artifact_type: str
) -> tuple[Descriptor, ...]:
    url = await endpoint.url(f"referrers/{subject}")
    if artifact_type:
        url = url.copy_add_param("artifactType", artifact_type)
    home = origin(url)
    found: list[Descriptor] = []
    for _ in range(PAGES_LIMIT):
        async with endpoint.request("GET", url, pull_scope(endpoint.reference), _ACCEPT) as answer:
            found += (await _read_index(endpoint, answer, "referrers")).manifests
            if len(found) > REFERRERS_LIMIT:
                raise ContentError(f"{endpoint}: more than {REFERRERS_LIMIT} referrers")
            link = _NEXT.search(answer.headers.get("link", "")[:8192])
            if link is None:
                return tuple(found)
            try:
                url = answer.url.join(link[1])
            except (httpx.InvalidURL, ValueError) as error:
                raise ProtocolError(f"{endpoint}: list goes on at no URL") from error
        if origin(url) != home:
            raise ProtocolError(f"{endpoint}: list goes on at another host ({host_of(url)})")
    raise ContentError(f"{endpoint}: list of more than {PAGES_LIMIT} pages")


async def fetch_fallback(endpoint: Endpoint, subject: Digest) -> Index | None:
    """The index that the fallback tag names; None if there is none."""
    url = await endpoint.url(f"manifests/{fallback_tag(subject)}")
    async with endpoint.request("GET", url, pull_scope(endpoint.reference), _ACCEPT) as answer:
        if answer.status_code == _NOT_FOUND:
            return None
        return await _read_index(endpoint, answer, "referrers' tag")


async def _read_index(endpoint: Endpoint, response: httpx.Response, what: str) -> Index:
    if response.status_code != _OK:
        raise await endpoint.refusal(response, what)
    refuse_page(response, OCI_INDEX)
    raw = await endpoint.wire.read(response, MANIFEST_LIMIT_BYTES)
    return decode_index(raw, OCI_INDEX)


async def push_referrer(
    client: RegistryClient, raw: bytes, descriptor: Descriptor, subject: Digest
) -> None:
    """Write a manifest that refers to ``subject``, and see that it can be found by it.

    Two writers at the same time may lose one entry of a fallback tag: the protocol has no way to
    exclude that.

    Args:
        client: of the repository that has ``subject``.
        raw: the manifest; its blobs must be there before.
        descriptor: of ``raw``, with its artifact type and annotations.
        subject: what the manifest names as its subject.

    Raises:
        RegistryError: the registry does not take it.
    """
    endpoint = client.able(Capability.PUSH)[0]

    async def once(endpoint: Endpoint) -> None:
        if not await _put(endpoint, str(descriptor.digest), raw, descriptor):
            await _add_to_fallback(endpoint, descriptor, subject)

    await client.run(once, Attempts([endpoint], client.deadlines.total_s, writing=True))


async def _put(endpoint: Endpoint, name: str, raw: bytes, descriptor: Descriptor) -> bool:
    """Write a manifest; whether the registry says that it keeps lists of referrers."""
    url = await endpoint.url(f"manifests/{name}")
    scopes = (f"repository:{endpoint.reference.repository}:pull,push",)
    headers = {"Content-Type": descriptor.media_type}
    async with endpoint.request("PUT", url, scopes, headers, raw) as response:
        if response.status_code not in (_OK, _CREATED):
            raise await endpoint.refusal(response, f"manifest {name}")
        return "oci-subject" in response.headers


async def _add_to_fallback(endpoint: Endpoint, descriptor: Descriptor, subject: Digest) -> None:
    index = await fetch_fallback(endpoint, subject) or Index(())
    raw = add_referrer(index, descriptor).encode()
    await _put(endpoint, fallback_tag(subject), raw, describe(raw, OCI_INDEX))
