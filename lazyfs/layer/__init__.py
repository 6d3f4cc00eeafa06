"""One layer as random access to verified bytes: ranges, chunk table, cache and proofs.

source.py    a blob somewhere else (registry, file) -> unverified bytes
chunks.py    chunks by the store or by merged range requests; frames checked on arrival
fetcher.py   what the store lacks is fetched, once; runs.py: which pieces by one request (pure)
outages.py   what is told of pieces that cannot be had
hashes.py    the dm-verity tree, fetched lazily and proven top down
pages.py     small bounded memory of proven bytes (metadata)
seekable.py  the three above -> VerifiedReader
whole.py     a layer that must be fetched whole -> VerifiedReader
local.py     a file of this machine -> VerifiedReader
open.py      LayerPlan -> VerifiedReader, by as few requests as the format allows
opening.py   the beginning of a blob, fetched along with its chunk table

What is asked for when nobody waits for it:

line.py      how fast the line is, and what follows from it (pure)
turns.py     who may ask now; surprise.py: whether readers want what the background brings (pure)
readahead.py who reads from front to back (pure); ahead.py: which chunks that makes
likely.py    what others will want next (pure); guess.py: fetches it while the line is idle

For whole layers in files (unpack, verify):

contentfile.py  the file, zeros left out; placement.py: where the tree lies in it
blockproof.py   data blocks against a tree in such a file
contenthash.py  the digest of a content that comes in any order
streamed.py     a blob that can only be decoded from its start
"""
