"""dm-verity hash trees: superblock, geometry, building, and checking block by block; pure.

The payload is what ``veritysetup format`` writes to a hash device: the superblock padded to
a hash block, then the levels of the tree, the single top block first and the leaf level
last. Level 0 hashes the data blocks; level k hashes the hash blocks of level k-1; the root
digest is the hash of the top block, or of the data block when there is only one.
"""
