"""BN0: the monitor itself."""
