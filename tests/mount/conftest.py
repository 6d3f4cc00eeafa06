"""What the end-to-end tests share: a real registry with a real image, converted once."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.registry_server import RegistryServer, running_registry


@pytest.fixture(scope="session")
def work_folder() -> Iterator[Path]:
    """A place for much data, on the disk of the checkout."""
    images.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="session-", dir=images.CACHE) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def registry(work_folder: Path) -> Iterator[RegistryServer]:
    """A registry for all tests; those that stop one start another on the same folder."""
    with running_registry(work_folder / "registry") as server:
        yield server


@pytest.fixture(scope="session")
def big_image(work_folder: Path, registry: RegistryServer) -> ConvertedImage:
    """The image of three layers: pushed by skopeo as tar, converted in the registry."""
    layout = images.three_layers()
    return push_and_convert(layout, images.TAG, "debian", registry, work_folder / "raw")
