"""One cause a file."""
