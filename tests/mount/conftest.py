"""What the end-to-end tests share: a real registry with a real image, converted once."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import images
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.overlay_oracle import erofs_overlay
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.trees import Facts, look


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
    layout = images.three_layers(target=work_folder / "layout")
    return push_and_convert(layout, images.TAG, "debian", registry, work_folder / "raw")


@pytest.fixture(scope="session")
def kernel_view(big_image: ConvertedImage, work_folder: Path) -> Mapping[bytes, Facts]:
    """Everything that the kernel shows of that image's decoded layers."""
    with erofs_overlay(big_image.raw, work_folder / "overlay") as tree:
        return look(tree)
