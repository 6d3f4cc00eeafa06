"""Where nothing keeps lists of referrers, an index under a tag does.

distribution-spec, "Referrers Tag Schema".
"""

import re
from dataclasses import replace

from registry.digest import Digest
from registry.manifest import Descriptor, Index

_TAG = re.compile(r"sha(256|512)-[0-9a-f]{64}", re.ASCII)


def fallback_tag(subject: Digest) -> str:
    """The tag of the index that lists what refers to ``subject``."""
    return f"{subject.algorithm[:32]}-{subject.encoded[:64]}"


def is_fallback_tag(tag: str) -> bool:
    """Whether a tag names such an index, as far as one can tell by looking at it."""
    return _TAG.fullmatch(tag) is not None


def add_referrer(index: Index, descriptor: Descriptor) -> Index:
    """The index with one more entry, in the place of an earlier one of the same digest."""
    others = tuple(entry for entry in index.manifests if entry.digest != descriptor.digest)
    return replace(index, manifests=(*others, descriptor))
