"""BN8: where normalization sits in the network."""
