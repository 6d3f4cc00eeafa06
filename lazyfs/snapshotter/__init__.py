"""A snapshotter for containerd whose layers are lazy. See README.md."""
