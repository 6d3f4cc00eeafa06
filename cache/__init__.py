"""Content-addressed store of verified chunks on the local disk, shared by several processes.

Knows keys and bytes; knows nothing of HTTP, EROFS or FUSE. Import the modules by name.
"""
