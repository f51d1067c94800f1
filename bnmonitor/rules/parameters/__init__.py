"""BN7: parameters and learning rate."""
