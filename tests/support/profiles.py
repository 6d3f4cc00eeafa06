"""Startup profiles of images under test, put beside them."""

from lazyfs.profile.document import BlockRun, Profile
from lazyfs.pushedprofile import check_profile, push_profile
from lazyfs.resolve import ResolvedImage, resolve_image
from registry.transports import open_destination, open_source


async def resolved_at(name: str) -> ResolvedImage:
    async with open_source(name) as source:
        return await resolve_image(source, None)


async def profile_of(name: str, *blocks: BlockRun) -> Profile:
    """One that names some blocks of an image."""
    resolved = await resolved_at(name)
    layers = tuple(str(layer.digest) for layer in resolved.manifest.layers)
    return Profile(str(resolved.descriptor.digest), layers, 1, blocks, ())


async def push(name: str, profile: Profile, created: str) -> None:
    """Put it where mounts of the image find it."""
    resolved = await resolved_at(name)
    check_profile(profile, resolved)
    async with open_destination(name) as destination:
        await push_profile(destination, profile, resolved.descriptor, created)
