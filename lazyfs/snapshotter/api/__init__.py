"""Messages of containerd and CRI, generated from the .proto files here: ``make proto``."""
