"""Writing EROFS: from entries in any order to the bytes of an image (pure).

``builder.ImageBuilder`` takes entries and file data and hands aligned file data to a spool as
it comes; ``finish`` then makes the metadata, which lies before the data in the image.
"""
