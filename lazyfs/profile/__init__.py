"""What a program read of an image: written down, put together, used by the next start."""
