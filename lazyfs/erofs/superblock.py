"""Superblock: decoding, feature gates and checksum."""

from dataclasses import dataclass

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.crc32c import crc32c
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.model import Nid

HEAD_BYTES = 512
"""Every image has at least this many bytes behind ``EROFS_SUPER_OFFSET``."""

_CHECKSUM_OFFSET = 4
_METABOX_BIT = 1 << ondisk.EROFS_DIRENT_NID_METABOX_BIT


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock says, the 48-bit forms already put together."""

    block_bits: int
    block_bytes: int
    feature_compat: int
    feature_incompat: int
    root_nid: Nid
    inode_count: int
    block_count: int
    """Of the first device; some writers leave it 0."""
    meta_address: int
    """Byte address of nid 0; may be negative (the metadata zone counts backwards)."""
    xattr_address: int
    """Byte address of the shared xattr area (in the metabox with SHARED_EA_IN_METABOX)."""
    epoch_s: int
    fixed_ns: int
    build_time_s: int
    uuid: bytes
    volume_name: bytes
    compression_algorithms: int
    """Bit n: ``Z_EROFS_COMPRESSION_*`` n may be used."""
    device_count: int
    """Slots of the device table."""
    device_table_address: int
    xattr_prefix_count: int
    xattr_prefix_offset: int
    """Bytes from the start of whatever holds the prefix table."""
    packed_nid: Nid
    """The inode of all fragments; 0: there is none."""
    metabox_nid: Nid
    """The inode of compressed metadata; 0: there is none."""

    def has_compat(self, feature: int) -> bool:
        """Whether an ``EROFS_FEATURE_COMPAT_*`` bit is set."""
        return bool(self.feature_compat & feature)

    def has_incompat(self, feature: int) -> bool:
        """Whether an ``EROFS_FEATURE_INCOMPAT_*`` bit is set."""
        return bool(self.feature_incompat & feature)


def decode_superblock(head: bytes) -> Superblock:
    """Decode the superblock from ``HEAD_BYTES`` bytes at ``EROFS_SUPER_OFFSET``.

    Raises:
        ImageFormatError: no EROFS image, or geometry that makes no sense.
        UnsupportedFeatureError: it needs a feature that lazyfs does not know.
    """
    raw = ondisk.SUPER_BLOCK.decode(head)
    if raw.magic != ondisk.EROFS_SUPER_MAGIC_V1:
        raise ImageFormatError(
            f"superblock: magic {raw.magic:#010x}, not {ondisk.EROFS_SUPER_MAGIC_V1:#010x}"
        )
    _check_features(raw)
    wide = bool(raw.feature_incompat & ondisk.EROFS_FEATURE_INCOMPAT_48BIT and raw.rootnid_8b)
    signed_meta_blkaddr = raw.meta_blkaddr - (raw.meta_blkaddr >> 31 << 32)
    return Superblock(
        block_bits=raw.blkszbits,
        block_bytes=1 << raw.blkszbits,
        feature_compat=raw.feature_compat,
        feature_incompat=raw.feature_incompat,
        root_nid=Nid(raw.rootnid_8b if wide else raw.rb),
        inode_count=raw.inos,
        block_count=raw.blocks_lo | (raw.rb << 32 if wide else 0),
        meta_address=signed_meta_blkaddr << raw.blkszbits,
        xattr_address=raw.xattr_blkaddr << raw.blkszbits,
        epoch_s=raw.epoch - (raw.epoch >> 63 << 64),
        fixed_ns=raw.fixed_nsec,
        build_time_s=raw.build_time,
        uuid=raw.uuid,
        volume_name=raw.volume_name.rstrip(b"\0"),
        compression_algorithms=_compression_algorithms(raw),
        device_count=_device_count(raw),
        device_table_address=raw.devt_slotoff * ondisk.EROFS_DEVT_SLOT_SIZE,
        xattr_prefix_count=raw.xattr_prefix_count,
        xattr_prefix_offset=raw.xattr_prefix_start << 2,
        packed_nid=Nid(raw.packed_nid),
        metabox_nid=_metabox_nid(raw, head),
    )


def _check_features(raw: ondisk.SuperBlockRecord) -> None:
    unknown = raw.feature_incompat & ~ondisk.EROFS_ALL_FEATURE_INCOMPAT
    if unknown:
        raise UnsupportedFeatureError(f"superblock: unknown incompatible features {unknown:#x}")
    if not limits.MIN_BLOCK_BITS <= raw.blkszbits <= limits.MAX_BLOCK_BITS:
        raise UnsupportedFeatureError(f"superblock: blocks of 2^{raw.blkszbits} bytes")
    if raw.dirblkbits:
        raise UnsupportedFeatureError(f"superblock: directory blocks of 2^{raw.dirblkbits} blocks")
    if raw.fixed_nsec > limits.MAX_NANOSECONDS:
        raise ImageFormatError(f"superblock: fixed_nsec {raw.fixed_nsec}")
    if raw.packed_nid & _METABOX_BIT:
        raise ImageFormatError("superblock: the packed inode is in the metabox")


def _compression_algorithms(raw: ondisk.SuperBlockRecord) -> int:
    if not raw.feature_incompat & ondisk.EROFS_FEATURE_INCOMPAT_COMPR_CFGS:
        return 1 << ondisk.Z_EROFS_COMPRESSION_LZ4
    unknown = raw.u1 & ~ondisk.Z_EROFS_ALL_COMPR_ALGS
    if unknown:
        raise UnsupportedFeatureError(f"superblock: unknown compression algorithms {unknown:#x}")
    return raw.u1


def _device_count(raw: ondisk.SuperBlockRecord) -> int:
    if not raw.feature_incompat & ondisk.EROFS_FEATURE_INCOMPAT_DEVICE_TABLE:
        return 0
    if raw.extra_devices > limits.MAX_EXTRA_DEVICES:
        raise UnsupportedFeatureError(
            f"superblock: {raw.extra_devices} extra devices, the limit is "
            f"{limits.MAX_EXTRA_DEVICES}"
        )
    return raw.extra_devices


def _metabox_nid(raw: ondisk.SuperBlockRecord, head: bytes) -> Nid:
    if not raw.feature_incompat & ondisk.EROFS_FEATURE_INCOMPAT_METABOX:
        return Nid(0)
    if not raw.sb_extslots:
        raise ImageFormatError("superblock: too short to name its metabox")
    slot = ondisk.SUPER_BLOCK_EXTSLOT_1.decode(head, ondisk.SUPER_BLOCK.size_bytes)
    if slot.metabox_nid & _METABOX_BIT:
        raise ImageFormatError("superblock: the metabox is in the metabox")
    return Nid(slot.metabox_nid)


def checksum_length(superblock: Superblock) -> int:
    """Bytes from ``EROFS_SUPER_OFFSET`` on that the checksum covers; 0: there is none.

    That is the rest of the block that holds the superblock.
    """
    if not superblock.has_compat(ondisk.EROFS_FEATURE_COMPAT_SB_CHKSUM):
        return 0
    if superblock.block_bytes > ondisk.EROFS_SUPER_OFFSET:
        return superblock.block_bytes - ondisk.EROFS_SUPER_OFFSET
    return superblock.block_bytes


def check_checksum(covered: bytes) -> None:
    """Check the ``checksum_length`` bytes at ``EROFS_SUPER_OFFSET``.

    Raises:
        ImageFormatError: the checksum is another one.
    """
    want = int.from_bytes(covered[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 4], "little")
    found = crc32c(covered[:_CHECKSUM_OFFSET] + bytes(4) + covered[_CHECKSUM_OFFSET + 4 :])
    if found != want:
        raise ImageFormatError(f"superblock: checksum {found:#010x}, not {want:#010x}")
