"""BN3: the running average."""
