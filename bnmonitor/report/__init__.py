"""Reports on a recorded run: read from its history, without torch."""
