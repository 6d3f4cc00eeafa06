"""Compressed EROFS data: which pcluster holds which bytes, and the codecs."""
