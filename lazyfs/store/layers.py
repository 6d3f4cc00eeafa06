"""The layers of one image as files, for the kernel to make one tree of."""

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.interfaces import LayerReader
from lazyfs.store.tree import FileTree, node_of


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file that was opened before it came here."""

    reader: LayerReader

    async def opened(self) -> LayerReader:
        """The same."""
        return self.reader


class LayerFiles:
    """A folder with a file for each layer and each of their devices."""

    def __init__(
        self, layers: Sequence[Sequence[LayerReader]], obstacle: str | None = None
    ) -> None:
        """Make files.

        Args:
            layers: bottom layer first: the image, then its devices.
            obstacle: why the kernel cannot make the image's tree of them, if it cannot.
        """
        self.tree = FileTree()
        self.obstacle = obstacle
        self.readers: dict[str, LayerReader] = {}
        """By the names of the files."""
        self.names: list[list[str]] = []
        """Bottom layer first: the image, then its devices."""
        for number, devices in enumerate(layers):
            names = [f"{number}.erofs", *(f"{number}-{i}.device" for i in range(1, len(devices)))]
            for name, reader in zip(names, devices, strict=True):
                self.tree.add((name.encode(),), _OpenFile(reader))
                self.readers[name] = reader
            self.names.append(names)

    @staticmethod
    def inode_of(name: str) -> int:
        """The inode number that a file has."""
        return node_of((name.encode(),))
