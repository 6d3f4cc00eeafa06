"""The device table, and which device a block address belongs to."""

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError


class DeviceSlot(NamedTuple):
    """One extra device."""

    tag: bytes
    """Whatever names the device, such as a digest; without trailing NULs."""
    size_bytes: int
    unified_address: int
    """Byte address at which the device begins in the unified address space; 0: nowhere."""


class Place(NamedTuple):
    """Bytes of one device that lie together."""

    device: int
    address: int
    length: int


def decode_device_table(superblock: Superblock, table: bytes) -> tuple[DeviceSlot, ...]:
    """Decode ``superblock.device_count`` slots.

    Raises:
        TruncatedRecordError: ``table`` is too short for them.
    """
    wide = superblock.has_incompat(ondisk.EROFS_FEATURE_INCOMPAT_48BIT)
    slots = []
    for index in range(superblock.device_count):
        raw = ondisk.DEVICE_SLOT.decode(table, index * ondisk.EROFS_DEVT_SLOT_SIZE)
        blocks = raw.blocks_lo | (raw.blocks_hi << 32 if wide else 0)
        unified = raw.uniaddr_lo | (raw.uniaddr_hi << 32 if wide else 0)
        bits = superblock.block_bits
        slots.append(DeviceSlot(raw.tag.rstrip(b"\0"), blocks << bits, unified << bits))
    return tuple(slots)


class AddressSpace:
    """Resolves the (device id, address) pairs of extents to bytes of a device.

    Device id 0 means the unified address space: the first device and behind it, at their
    ``unified_address``, the others. A flat image is one file that holds all of them.
    """

    def __init__(self, slots: tuple[DeviceSlot, ...], *, flat: bool) -> None:
        """Index ``slots``.

        Raises:
            ImageFormatError: devices overlap in the unified address space.
        """
        self._slots = slots
        self._flat = flat
        self._mask = (1 << len(slots).bit_length()) - 1
        ranges = sorted(
            (slot.unified_address, slot.unified_address + slot.size_bytes, number)
            for number, slot in enumerate(slots, 1)
            if slot.unified_address and slot.size_bytes
        )
        for before, after in pairwise(ranges):
            if after[0] < before[1]:
                raise ImageFormatError(
                    f"device table: devices {before[2]} and {after[2]} overlap at {after[0]}"
                )
        self._ranges = ranges
        self._starts = [start for start, _, _ in ranges]
        alone = flat or not ranges
        self.primary_bytes = limits.MAX_ADDRESS if alone else ranges[0][0]
        """Up to here unified addresses are addresses of device 0."""

    def resolve(self, device_id: int, address: int, length: int) -> list[Place]:
        """Where ``length`` bytes lie; more than one place only if they cross a device's edge.

        Raises:
            ImageFormatError: no such device, or no such address.
        """
        if address < 0 or address + length > limits.MAX_ADDRESS:
            raise ImageFormatError(f"{length} bytes at address {address} of device {device_id}")
        device_id &= self._mask
        if device_id:
            if device_id > len(self._slots):
                raise ImageFormatError(f"device {device_id}: the table has {len(self._slots)}")
            if not self._flat:
                return [Place(device_id, address, length)]
            address += self._slots[device_id - 1].unified_address
            return [Place(0, address, length)]
        if address + length <= self.primary_bytes:
            return [Place(0, address, length)]
        return self._split(address, length)

    def _split(self, address: int, length: int) -> list[Place]:
        places = []
        end = address + length
        while address < end:  # one step per device edge
            index = bisect_right(self._starts, address)
            stop = min(end, self._starts[index]) if index < len(self._starts) else end
            device, start = 0, 0
            if index:
                range_start, range_end, number = self._ranges[index - 1]
                if address < range_end:
                    device, start, stop = number, range_start, min(stop, range_end)
            places.append(Place(device, address - start, stop - address))
            address = stop
        return places
