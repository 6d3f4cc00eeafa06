"""Where the snapshotter and what belongs to it lie by default. Imports nothing."""

from pathlib import Path

ROOT = Path("/var/lib/lazyfs-snapshotter")
ADDRESS = Path("/run/lazyfs-snapshotter/snapshotter.sock")
CONTAINERD = Path("/run/containerd/containerd.sock")
AUTH_NAME = "auth.json"
"""Beside the socket, which lies on a tmpfs: credentials do not survive the machine's restart."""
