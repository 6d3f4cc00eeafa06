"""Checks all of an image, and goes on after a failure to find every one.

findings.py    what is broken, for people and programs
blob.py        one layer's blob: digests, chunks, hash blocks, data blocks; its content in a file
content.py     what could be had of that content
structure.py   the EROFS image in such files: everything that its root leads to
image.py       manifest, configuration and all layers of an image
local.py       a local EROFS image
cached.py      what mounts have cached of an image
"""
