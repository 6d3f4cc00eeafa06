"""dm-verity trees by veritysetup, which knows nothing of our code."""

import subprocess
from pathlib import Path

from lazyfs.verity.params import VerityParams


def format_tree(folder: Path, data: bytes, params: VerityParams) -> tuple[bytes, bytes]:
    """Root digest and payload that veritysetup makes for ``data`` (whole blocks)."""
    source, tree = folder / "data", folder / "tree"
    source.write_bytes(data)
    tree.unlink(missing_ok=True)
    uuid = params.uuid.hex()
    command: list[str | Path] = [
        "veritysetup",
        "format",
        f"--hash={params.algorithm}",
        f"--format={params.hash_type}",
        f"--salt={params.salt.hex() or '-'}",
        f"--data-block-size={params.data_block_size_bytes}",
        f"--hash-block-size={params.hash_block_size_bytes}",
        f"--uuid={uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}",
        source,
        tree,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("Root hash:"))
    return bytes.fromhex(line.split()[-1]), tree.read_bytes()


def accepts(device: Path, hash_offset: int, root_digest: bytes) -> bool:
    """Whether veritysetup verifies a file that holds data and, at ``hash_offset``, the tree."""
    command: list[str | Path] = ["veritysetup", "verify", f"--hash-offset={hash_offset}"]
    command += [device, device, root_digest.hex()]
    done = subprocess.run(command, check=False, capture_output=True)
    return done.returncode == 0
