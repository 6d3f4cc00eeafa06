"""Unpacks an image into a folder: each layer whole, as containerd's EROFS snapshotter keeps it.

options.py   what a user can choose
folder.py    one layer's files: names, lock, journal, and the step that makes them final
fetching.py  missing chunks by few requests, in bounded memory
layer.py     one layer, from its plan to its finished file
tree.py      a dm-verity tree of our own behind an image
finished.py  whether a finished file is still what it must be
image.py     all layers of an image side by side
results.py   what was done, for the summary
"""
