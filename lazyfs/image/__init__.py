"""The layers of an image as one tree of files.

nodes.py         node id <-> (layer, EROFS nid), without any table
erofs_layer.py   one EROFS image: runs the parsers of lazyfs.erofs on verified bytes
single.py        one EROFS image as a tree, shown as it is
redirects.py     one EROFS image whose files have their data in others
tracing.py       what a path means and what each layer has under it, for lazyfs explain
merged.py        a stack of them as one tree, with the rules of lazyfs.overlay
"""
