"""Which blocks of an image are read, in order of first use: noted while a mount serves.

Always on: a read of blocks that were read before costs a look into a dictionary, memory grows
with what is read, and both have a limit.
"""

from array import array
from collections.abc import Iterator

from lazyfs.profile.document import BLOCK_BYTES, MAX_BLOCK_RUNS, BlockRun

GROUP_BLOCKS = 256
"""Blocks (1 MiB) whose bits are kept in one number."""

MAX_GROUPS = 1 << 16
"""Of all layers; 64 GiB, if everything there is read."""


class Recording:
    """What all layers of one mount note."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._runs = array("Q")
        """Layer, first block and number of blocks of each run."""
        self._groups = 0
        self._layers = 0
        self.complete = True
        """Whether everything fitted into the limits."""

    def layer(self) -> "LayerTouches":
        """A layer that takes part."""
        self._layers += 1
        return LayerTouches(self, self._layers - 1)

    def runs(self) -> Iterator[BlockRun]:
        """What was read so far, in order of first use; no block twice."""
        runs = iter(self._runs.tolist())
        for layer, first, length in zip(runs, runs, runs, strict=True):
            yield BlockRun(layer, first, length)

    def room_for_group(self) -> bool:
        """Whether bits for one more group may be kept; then they count."""
        if self._groups == MAX_GROUPS:
            self.complete = False
            return False
        self._groups += 1
        return True

    def add(self, layer: int, first: int, length: int) -> None:
        """Note blocks that were not read before."""
        runs = self._runs
        if runs and runs[-3] == layer and runs[-2] + runs[-1] == first:
            runs[-1] += length
        elif len(runs) < 3 * MAX_BLOCK_RUNS:
            runs.extend((layer, first, length))
        else:
            self.complete = False


class LayerTouches:
    """What one layer notes."""

    def __init__(self, recording: Recording, number: int) -> None:
        """Note reads of the layer that has ``number`` in the recording's runs."""
        self.number = number
        self._recording = recording
        self._groups: dict[int, int] = {}
        """Bits of the blocks that were read, lowest first."""

    def note(self, offset: int, length: int) -> None:
        """Note a read of ``length`` bytes, at least one, at ``offset``."""
        first = offset // BLOCK_BYTES
        end = (offset + length - 1) // BLOCK_BYTES + 1
        while first < end:
            group, start = divmod(first, GROUP_BLOCKS)
            count = min(GROUP_BLOCKS - start, end - first)
            wanted = ((1 << count) - 1) << start
            known = self._groups.get(group)
            if known is None:
                if not self._recording.room_for_group():
                    return
                known = 0
            if fresh := wanted & ~known:
                self._groups[group] = known | wanted
                self._add(group * GROUP_BLOCKS, fresh)
            first += count

    def _add(self, base: int, bits: int) -> None:
        """Note the runs of ones in ``bits``, whose lowest is for block ``base``."""
        while bits:
            start = (bits & -bits).bit_length() - 1
            bits >>= start
            base += start
            length = (~bits & (bits + 1)).bit_length() - 1
            self._recording.add(self.number, base, length)
            bits >>= length
            base += length
