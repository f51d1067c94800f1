"""BN1: numerics."""
