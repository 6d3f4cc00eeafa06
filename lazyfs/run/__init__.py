"""Containers on lazy roots, run by an OCI runtime (crun or runc)."""
