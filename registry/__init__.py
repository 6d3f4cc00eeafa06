"""OCI distribution client: references, credentials, manifests, blobs, layout folders and archives.

Knows HTTP and OCI; knows nothing of EROFS, FUSE or chunks. Import the modules by name:
this file stays empty so that ``import registry.digest`` does not load an HTTP client.
"""
