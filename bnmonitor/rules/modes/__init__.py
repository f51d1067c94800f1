"""BN4: modes and freezing."""
