"""A mount's life: its options, the daemon that serves it, how it is started, asked and ended."""
