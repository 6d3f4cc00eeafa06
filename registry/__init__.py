"""OCI distribution client: references, credentials, manifests, blobs, layout folders and archives.

Knows HTTP and OCI; knows nothing of EROFS, FUSE or chunks. Import the modules by name:
this file imports none of them so that ``import registry.digest`` does not load an HTTP client.
"""

import sys

# httpx imports its command line where that can be had, and with it rich, click and pygments: two
# thirds of its time. None makes the import fail, as it does where they are not installed.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
