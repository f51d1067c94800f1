"""The history of a run in TensorBoard's event files: its words, how it is written, how it is read. Free of torch."""
