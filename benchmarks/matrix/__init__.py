"""Starts over lines of several kinds, beside peers: ``python -m benchmarks.matrix``."""
