"""What a mount fetches before anybody asks: its image's startup profile, and perhaps the rest.

The profile is looked for while the layers are opened, and nobody waits for it. It is a hint of
somebody who need not be trusted: whatever is wrong with it is told by ``lazyfs status``, costs
some bytes at most (``lazyfs.profile.batches.LIMIT_BYTES``), and is no error of the mount.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import trio

from lazyfs.documents import Documents, KeptSource
from lazyfs.errors import LazyfsError, ProfileError
from lazyfs.layer.guess import Guesser
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.prefetch import Progress, fetch_planned, prefetch
from lazyfs.mount.options import MountOptions
from lazyfs.mount.report import LayerReport
from lazyfs.profile.batches import Dropped, Plan
from lazyfs.profile.document import Profile
from lazyfs.profilefile import read_profile
from lazyfs.pushedprofile import KnownProfiles, fetch_profile, find_profile
from lazyfs.resolve import ResolvedImage
from registry.errors import RegistryError
from registry.manifest import Descriptor

log = logging.getLogger(__name__)


class Startup:
    """The background fetches of one mount."""

    def __init__(
        self,
        source: KeptSource,
        documents: Documents,
        resolved: ResolvedImage,
        options: MountOptions,
        guesser: Guesser | None,
    ) -> None:
        """Look for the profile of ``resolved`` as ``options`` say; then have ``guesser`` guess."""
        self._source = source
        self._image = resolved.descriptor.digest
        self._known = KnownProfiles(documents)
        self._options = options
        self._guesser = guesser
        self._layers: Sequence[LayerReport] = ()
        self._opened = trio.Event()
        self._state = "none" if options.prefetch in ("none", "guess") else "looking"
        self._origin = ""
        self._problem = ""
        self._profile: Profile | None = None
        self._dropped = Dropped(0, limited=False)
        self._progress = Progress()

    def opened(self, layers: Sequence[LayerReport]) -> None:
        """The layers can be read now."""
        self._layers = layers
        self._opened.set()

    def document(self) -> dict[str, object]:
        """What the status tells of it."""
        return {
            "state": self._state,
            "origin": self._origin,
            "problem": self._problem or None,
            "runs": self._profile.runs if self._profile else 0,
            "named_bytes": self._profile.touched_bytes if self._profile else 0,
            **asdict(self._progress),
            "dropped_blocks": self._dropped.blocks,
            "limited": self._dropped.limited,
        }

    async def run(self) -> None:
        """Fetch what is to be fetched; not even a bug gets out, which would end the mount."""
        if self._state == "looking":
            await self._try_profile()
        if self._guesser is not None:
            self._guesser.start(alone=self._profile is None)
        if self._options.prefetch == "all":
            await self._opened.wait()
            readers = [layer.opened.reader for layer in self._layers]
            await prefetch(readers, self._options.prefetch_bytes_per_s)

    async def _try_profile(self) -> None:
        try:
            await self._by_profile()
        except (LazyfsError, RegistryError, OSError) as error:
            self._state, self._problem = "failed", str(error)
            log.info("mounting without a profile: %s", error)
        except Exception as error:
            self._state, self._problem = "failed", f"internal error: {error}"
            log.exception("mounting without a profile: internal error")

    async def _by_profile(self) -> None:
        if self._options.profile is not None:
            self._origin = str(self._options.profile)
            await self._fetch(await trio.to_thread.run_sync(read_profile, self._options.profile))
            return
        known = await self._known.get(self._image)
        if known is not None and not await self._still_good(known):
            known = None
        found = await find_profile(self._source, self._image)
        if found != known:
            await self._known.put(self._image, found)
        if known is None and found is not None:
            await self._fetch_pushed(found)
        elif known is None:
            self._state = "none"

    async def _still_good(self, known: Descriptor) -> bool:
        """Fetch by the remembered profile; False: it cannot be used, and hides no other one."""
        try:
            await self._fetch_pushed(known)
        except (LazyfsError, RegistryError, OSError) as error:
            log.info("looking for another profile than the remembered one: %s", error)
            self._state, self._origin, self._profile = "looking", "", None
            return False
        return True

    async def _fetch_pushed(self, blob: Descriptor) -> None:
        self._origin = str(blob.digest)
        await self._fetch(await fetch_profile(self._source, blob))

    async def _fetch(self, profile: Profile) -> None:
        """Fetch what a profile names of these layers.

        Raises:
            ProfileError: it is of other layers.
        """
        self._profile = profile
        await self._opened.wait()
        ours = {str(layer.descriptor.digest): layer for layer in self._layers}
        named = {
            number: ours[digest] for number, digest in enumerate(profile.layers) if digest in ours
        }
        if not named:
            raise ProfileError("the profile is of another image: no layer of it is in this one")
        chunked = {
            number: (layer.opened.reader, layer.opened.chunks)
            for number, layer in named.items()
            if layer.opened.chunks is not None
        }
        tables = {
            number: (chunks.table, chunks.image_size_bytes)
            for number, (_, chunks) in chunked.items()
        }
        plan = Plan(profile.blocks, tables)
        self._dropped = plan.dropped
        self._state = "fetching"
        readers = {number: reader for number, (reader, _) in chunked.items()}
        with _expected(plan, readers):
            await fetch_planned(plan, readers, self._progress)
        self._state = "done"


@contextmanager
def _expected(plan: Plan, readers: Mapping[int, PagedReader]) -> Iterator[None]:
    """No read-ahead by who reads what a plan brings: it brings what he wants next as well.

    And who wants it before it comes is not surprised.
    """
    try:
        for number, reader in readers.items():
            reader.announce(plan.chunks[number])
        yield
    finally:
        for reader in readers.values():
            reader.announce(())
