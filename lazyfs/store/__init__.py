"""Layers as files: each a lazy, verified EROFS image that the kernel can mount. See README.md."""
