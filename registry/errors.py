"""The errors of the registry client."""


class RegistryError(Exception):
    """Base of every error that the registry package raises on purpose."""
