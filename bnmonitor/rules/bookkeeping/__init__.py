"""BN5: bookkeeping."""
