"""Records and constants of EROFS, by the names of ``erofs_fs.h`` (erofs-utils 1.9.3).

Everything is little-endian. Where the header has a union, the record has one field and the
comment says what the other readings are. Reading and writing share this file.
"""

from typing import Annotated, NamedTuple

from lazyfs.ondisk import U8, U16, U32, U64, Bytes16, Bytes64, Layout

Bytes2 = Annotated[bytes, "2s"]
Bytes7 = Annotated[bytes, "7s"]
Bytes12 = Annotated[bytes, "12s"]
Bytes52 = Annotated[bytes, "52s"]

EROFS_SUPER_MAGIC_V1 = 0xE0F5E1E2
EROFS_SUPER_OFFSET = 1024
EROFS_SB_EXTSLOT_SIZE = 16
EROFS_DEVT_SLOT_SIZE = 128
EROFS_ISLOT_SIZE = 32
"""Bytes for one nid step (``islotbits`` is 5)."""

EROFS_FEATURE_COMPAT_SB_CHKSUM = 0x0001
EROFS_FEATURE_COMPAT_MTIME = 0x0002
EROFS_FEATURE_COMPAT_XATTR_FILTER = 0x0004
EROFS_FEATURE_COMPAT_SHARED_EA_IN_METABOX = 0x0008
EROFS_FEATURE_COMPAT_PLAIN_XATTR_PFX = 0x0010
EROFS_FEATURE_COMPAT_ISHARE_XATTRS = 0x0020

EROFS_FEATURE_INCOMPAT_LZ4_0PADDING = 0x0001
EROFS_FEATURE_INCOMPAT_COMPR_CFGS = 0x0002
EROFS_FEATURE_INCOMPAT_BIG_PCLUSTER = 0x0002
EROFS_FEATURE_INCOMPAT_CHUNKED_FILE = 0x0004
EROFS_FEATURE_INCOMPAT_DEVICE_TABLE = 0x0008
EROFS_FEATURE_INCOMPAT_COMPR_HEAD2 = 0x0008
EROFS_FEATURE_INCOMPAT_ZTAILPACKING = 0x0010
EROFS_FEATURE_INCOMPAT_FRAGMENTS = 0x0020
EROFS_FEATURE_INCOMPAT_DEDUPE = 0x0020
EROFS_FEATURE_INCOMPAT_XATTR_PREFIXES = 0x0040
EROFS_FEATURE_INCOMPAT_48BIT = 0x0080
EROFS_FEATURE_INCOMPAT_METABOX = 0x0100
EROFS_ALL_FEATURE_INCOMPAT = (EROFS_FEATURE_INCOMPAT_METABOX << 1) - 1

# i_format: bit 0 version, bits 1-3 data layout, bit 4 see below
EROFS_I_VERSION_MASK = 0x01
EROFS_I_DATALAYOUT_MASK = 0x07
EROFS_I_VERSION_BIT = 0
EROFS_I_DATALAYOUT_BIT = 1
EROFS_I_NLINK_1_BIT = 4
"""Compact inodes of anything but directories: nlink is 1 and ``i_nb`` is a high part."""
EROFS_I_DOT_OMITTED_BIT = 4
"""Directories: there is no ``.`` entry."""
EROFS_I_ALL = (1 << (EROFS_I_NLINK_1_BIT + 1)) - 1

EROFS_INODE_LAYOUT_COMPACT = 0
EROFS_INODE_LAYOUT_EXTENDED = 1

EROFS_INODE_FLAT_PLAIN = 0
EROFS_INODE_COMPRESSED_FULL = 1
EROFS_INODE_FLAT_INLINE = 2
EROFS_INODE_COMPRESSED_COMPACT = 3
EROFS_INODE_CHUNK_BASED = 4
EROFS_INODE_DATALAYOUT_MAX = 5

EROFS_CHUNK_FORMAT_BLKBITS_MASK = 0x001F
EROFS_CHUNK_FORMAT_INDEXES = 0x0020
EROFS_CHUNK_FORMAT_48BIT = 0x0040
EROFS_CHUNK_FORMAT_ALL = (EROFS_CHUNK_FORMAT_48BIT << 1) - 1

EROFS_BLOCK_MAP_ENTRY_SIZE = 4
EROFS_NULL_ADDR_32 = 0xFFFFFFFF
"""A hole in a 4-byte block map, or in a chunk index without the 48-bit flag."""
EROFS_NULL_ADDR_48 = 0xFFFFFFFFFFFF
"""A hole in a chunk index with the 48-bit flag."""

EROFS_XATTR_INDEX_USER = 1
EROFS_XATTR_INDEX_POSIX_ACL_ACCESS = 2
EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT = 3
EROFS_XATTR_INDEX_TRUSTED = 4
EROFS_XATTR_INDEX_LUSTRE = 5
EROFS_XATTR_INDEX_SECURITY = 6
EROFS_XATTR_LONG_PREFIX = 0x80
EROFS_XATTR_LONG_PREFIX_MASK = 0x7F
EROFS_XATTR_ALIGN = 4
EROFS_XATTR_FILTER_BITS = 32
EROFS_XATTR_FILTER_DEFAULT = 0xFFFFFFFF
EROFS_XATTR_FILTER_SEED = 0x25BBE08F

EROFS_DIRENT_NID_METABOX_BIT = 63
EROFS_DIRENT_NID_MASK = (1 << EROFS_DIRENT_NID_METABOX_BIT) - 1
EROFS_NAME_LEN = 255

EROFS_FT_UNKNOWN = 0
EROFS_FT_REG_FILE = 1
EROFS_FT_DIR = 2
EROFS_FT_CHRDEV = 3
EROFS_FT_BLKDEV = 4
EROFS_FT_FIFO = 5
EROFS_FT_SOCK = 6
EROFS_FT_SYMLINK = 7
EROFS_FT_MAX = 8

Z_EROFS_PCLUSTER_MAX_SIZE = 1024 * 1024
Z_EROFS_PCLUSTER_MAX_DSIZE = 12 * 1024 * 1024
Z_EROFS_LZMA_MAX_DICT_SIZE = 8 * Z_EROFS_PCLUSTER_MAX_SIZE
Z_EROFS_ZSTD_MAX_DICT_SIZE = Z_EROFS_PCLUSTER_MAX_SIZE

Z_EROFS_COMPRESSION_LZ4 = 0
Z_EROFS_COMPRESSION_LZMA = 1
Z_EROFS_COMPRESSION_DEFLATE = 2
Z_EROFS_COMPRESSION_ZSTD = 3
Z_EROFS_COMPRESSION_MAX = 4
Z_EROFS_ALL_COMPR_ALGS = (1 << Z_EROFS_COMPRESSION_MAX) - 1

Z_EROFS_ADVISE_COMPACTED_2B = 0x0001
Z_EROFS_ADVISE_EXTENTS = 0x0001
Z_EROFS_ADVISE_BIG_PCLUSTER_1 = 0x0002
Z_EROFS_ADVISE_BIG_PCLUSTER_2 = 0x0004
Z_EROFS_ADVISE_INLINE_PCLUSTER = 0x0008
Z_EROFS_ADVISE_INTERLACED_PCLUSTER = 0x0010
Z_EROFS_ADVISE_FRAGMENT_PCLUSTER = 0x0020
Z_EROFS_ADVISE_EXTRECSZ_BIT = 1
Z_EROFS_ADVISE_EXTRECSZ_MASK = 0x3
Z_EROFS_FRAGMENT_INODE_BIT = 7

Z_EROFS_LCLUSTER_TYPE_PLAIN = 0
Z_EROFS_LCLUSTER_TYPE_HEAD1 = 1
Z_EROFS_LCLUSTER_TYPE_NONHEAD = 2
Z_EROFS_LCLUSTER_TYPE_HEAD2 = 3
Z_EROFS_LCLUSTER_TYPE_MAX = 4
Z_EROFS_LI_LCLUSTER_TYPE_MASK = Z_EROFS_LCLUSTER_TYPE_MAX - 1
Z_EROFS_LI_PARTIAL_REF = 1 << 15
Z_EROFS_LI_D0_CBLKCNT = 1 << 11

Z_EROFS_EXTENT_PLEN_PARTIAL = 1 << 27
Z_EROFS_EXTENT_PLEN_FMT_BIT = 28
Z_EROFS_EXTENT_PLEN_MASK = (Z_EROFS_PCLUSTER_MAX_SIZE << 1) - 1


class SuperBlockRecord(NamedTuple):
    """``struct erofs_super_block``: the 128 bytes that every image has."""

    magic: U32  # 0x00
    checksum: U32  # 0x04  crc32c of the block from EROFS_SUPER_OFFSET on, this field being 0
    feature_compat: U32  # 0x08
    blkszbits: U8  # 0x0c  block size as a power of two
    sb_extslots: U8  # 0x0d  16-byte slots behind these 128 bytes
    rb: U16  # 0x0e  rootnid_2b; with 48BIT blocks_hi
    inos: U64  # 0x10
    epoch: U64  # 0x18  seconds: base of compact inodes' times
    fixed_nsec: U32  # 0x20
    blocks_lo: U32  # 0x24
    meta_blkaddr: U32  # 0x28
    xattr_blkaddr: U32  # 0x2c
    uuid: Bytes16  # 0x30
    volume_name: Bytes16  # 0x40
    feature_incompat: U32  # 0x50
    u1: U16  # 0x54  available_compr_algs; without COMPR_CFGS lz4_max_distance
    extra_devices: U16  # 0x56
    devt_slotoff: U16  # 0x58  in units of EROFS_DEVT_SLOT_SIZE
    dirblkbits: U8  # 0x5a
    xattr_prefix_count: U8  # 0x5b
    xattr_prefix_start: U32  # 0x5c  in units of 4 bytes
    packed_nid: U64  # 0x60
    xattr_filter_reserved: U8  # 0x68
    ishare_xattr_prefix_id: U8  # 0x69
    reserved: Bytes2  # 0x6a
    build_time: U32  # 0x6c  seconds added to epoch
    rootnid_8b: U64  # 0x70  with 48BIT
    reserved2: U64  # 0x78


class SuperBlockExtSlot1Record(NamedTuple):
    """``struct erofs_super_block`` behind 0x80, there when ``sb_extslots`` >= 1."""

    metabox_nid: U64  # 0x80
    reserved3: U64  # 0x88


class DeviceSlotRecord(NamedTuple):
    """``struct erofs_deviceslot``."""

    tag: Bytes64  # 0x00
    blocks_lo: U32  # 0x40
    uniaddr_lo: U32  # 0x44  where the device begins in the unified address space, in blocks
    blocks_hi: U16  # 0x48
    uniaddr_hi: U16  # 0x4a
    reserved: Bytes52  # 0x4c


class InodeCompactRecord(NamedTuple):
    """``struct erofs_inode_compact``."""

    i_format: U16  # 0x00
    i_xattr_icount: U16  # 0x02
    i_mode: U16  # 0x04
    i_nb: U16  # 0x06  nlink; with NLINK_1 startblk_hi or blocks_hi
    i_size: U32  # 0x08
    i_mtime: U32  # 0x0c  seconds, added to the epoch (0 before 48BIT images)
    i_u: U32  # 0x10  startblk_lo, blocks_lo, rdev, or chunk format (low 16 bits)
    i_ino: U32  # 0x14
    i_uid: U16  # 0x18
    i_gid: U16  # 0x1a
    i_reserved: U32  # 0x1c


class InodeExtendedRecord(NamedTuple):
    """``struct erofs_inode_extended``."""

    i_format: U16  # 0x00
    i_xattr_icount: U16  # 0x02
    i_mode: U16  # 0x04
    i_nb: U16  # 0x06  startblk_hi or blocks_hi
    i_size: U64  # 0x08
    i_u: U32  # 0x10
    i_ino: U32  # 0x14
    i_uid: U32  # 0x18
    i_gid: U32  # 0x1c
    i_mtime: U64  # 0x20  seconds, signed
    i_mtime_nsec: U32  # 0x28
    i_nlink: U32  # 0x2c
    i_reserved2: Bytes16  # 0x30


class XattrIbodyHeaderRecord(NamedTuple):
    """``struct erofs_xattr_ibody_header``; ``h_shared_count`` 4-byte ids follow."""

    h_name_filter: U32  # 0x00
    h_shared_count: U8  # 0x04
    h_reserved2: Bytes7  # 0x05


class XattrEntryRecord(NamedTuple):
    """``struct erofs_xattr_entry``; name and value follow."""

    e_name_len: U8  # 0x00
    e_name_index: U8  # 0x01
    e_value_size: U16  # 0x02


class InodeChunkIndexRecord(NamedTuple):
    """``struct erofs_inode_chunk_index``."""

    startblk_hi: U16  # 0x00
    device_id: U16  # 0x02
    startblk_lo: U32  # 0x04


class DirentRecord(NamedTuple):
    """``struct erofs_dirent``."""

    nid: U64  # 0x00
    nameoff: U16  # 0x08  from the start of the directory block
    file_type: U8  # 0x0a
    reserved: U8  # 0x0b


class MapHeaderRecord(NamedTuple):
    """``struct z_erofs_map_header``."""

    h_fragmentoff: U32  # 0x00  or h_reserved1 and h_idata_size (high 16 bits), or h_extents_lo
    h_advise: U16  # 0x04
    h_algorithmtype: U8  # 0x06  bits 0-3 HEAD1, 4-7 HEAD2; with h_clusterbits also h_extents_hi
    h_clusterbits: U8  # 0x07


class LclusterIndexRecord(NamedTuple):
    """``struct z_erofs_lcluster_index``."""

    di_advise: U16  # 0x00
    di_clusterofs: U16  # 0x02
    di_u: U32  # 0x04  blkaddr; in NONHEAD delta[0] (low 16 bits) and delta[1]


class ExtentRecord(NamedTuple):
    """``struct z_erofs_extent`` in full; shorter record sizes are a prefix of it."""

    plen: U32  # 0x00
    pstart_lo: U32  # 0x04
    pstart_hi: U32  # 0x08
    lstart_lo: U32  # 0x0c
    lstart_hi: U32  # 0x10
    reserved: Bytes12  # 0x14


class Lz4CfgsRecord(NamedTuple):
    """``struct z_erofs_lz4_cfgs`` up to its reserved bytes."""

    max_distance: U16  # 0x00
    max_pclusterblks: U16  # 0x02


class LzmaCfgsRecord(NamedTuple):
    """``struct z_erofs_lzma_cfgs`` up to its reserved bytes."""

    dict_size: U32  # 0x00
    format: U16  # 0x04


class DeflateCfgsRecord(NamedTuple):
    """``struct z_erofs_deflate_cfgs`` up to its reserved bytes."""

    windowbits: U8  # 0x00


class ZstdCfgsRecord(NamedTuple):
    """``struct z_erofs_zstd_cfgs`` up to its reserved bytes."""

    format: U8  # 0x00
    windowlog: U8  # 0x01  minus 10


SUPER_BLOCK = Layout(SuperBlockRecord, size_bytes=128)
SUPER_BLOCK_EXTSLOT_1 = Layout(SuperBlockExtSlot1Record, size_bytes=EROFS_SB_EXTSLOT_SIZE)
DEVICE_SLOT = Layout(DeviceSlotRecord, size_bytes=EROFS_DEVT_SLOT_SIZE)
INODE_COMPACT = Layout(InodeCompactRecord, size_bytes=32)
INODE_EXTENDED = Layout(InodeExtendedRecord, size_bytes=64)
XATTR_IBODY_HEADER = Layout(XattrIbodyHeaderRecord, size_bytes=12)
XATTR_ENTRY = Layout(XattrEntryRecord, size_bytes=4)
INODE_CHUNK_INDEX = Layout(InodeChunkIndexRecord, size_bytes=8)
DIRENT = Layout(DirentRecord, size_bytes=12)
MAP_HEADER = Layout(MapHeaderRecord, size_bytes=8)
LCLUSTER_INDEX = Layout(LclusterIndexRecord, size_bytes=8)
EXTENT = Layout(ExtentRecord, size_bytes=32)
LZ4_CFGS = Layout(Lz4CfgsRecord, size_bytes=4)
LZMA_CFGS = Layout(LzmaCfgsRecord, size_bytes=6)
DEFLATE_CFGS = Layout(DeflateCfgsRecord, size_bytes=1)
ZSTD_CFGS = Layout(ZstdCfgsRecord, size_bytes=2)
