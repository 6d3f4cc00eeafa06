"""``lazyfs convert``: from an image of any kind to a seekable EROFS image."""
