"""BN6: what the data does to the statistics of a batch."""
