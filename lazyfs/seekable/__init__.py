"""The seekable layer blob: chunk frames, chunk table, annotations; bytes in, values out.

A blob is a run of zstd frames, one per chunk of the raw EROFS image, then a skippable
frame with the chunk table, then (optionally) a skippable frame with a dm-verity payload:

    frame(chunk 0) ... frame(chunk n-1) | 8 + chunk table | 8 + dm-verity superblock and tree

A stock zstd decoder turns the whole blob into exactly the raw image. The table says where
each frame begins and what its SHA-512 is; annotations of the layer's descriptor say where
the table begins and what the SHA-512 of its payload is. All integers are little-endian.
"""
