"""The history of a run in TensorBoard's event files: its names, writing it, and reading it. Free of torch."""
