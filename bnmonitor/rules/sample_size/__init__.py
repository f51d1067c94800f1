"""BN2: sample size."""
