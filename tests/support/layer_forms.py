"""The forms that a layer may have, by name: each makes one of an image."""

from tests.support.layer_builder import (
    Verity,
    raw,
    seekable,
    spec_raw,
    spec_seekable,
    without_index,
    zstd,
)

FORMS = {
    "containerd": lambda image: seekable(image),
    "odd chunks": lambda image: seekable(image, chunk=50_001),
    "small blocks": lambda image: seekable(image, verity=Verity(block=512)),
    "salted": lambda image: seekable(image, verity=Verity(algorithm="sha256", salt=b"salt" * 8)),
    "no tree": lambda image: seekable(image, verity=None),
    "no digests": lambda image: seekable(image, digests=False),
    "nothing": lambda image: seekable(image, verity=None, digests=False),
    "spec": lambda image: spec_seekable(image),
    "spec, odd chunks": lambda image: spec_seekable(image, chunk=50_001),
    "spec, no tree": lambda image: spec_seekable(image, verity=None),
    "spec, raw": lambda image: spec_raw(image, Verity()),
    "spec, no index": lambda image: without_index(spec_seekable(image)),
    "raw": raw,
    "zstd": zstd,
}
