"""What a recorded run says: read from its history, without torch."""
