"""The flight record: every channel of the whole run, in files of a bounded size. NumPy only; see docs/format.md."""
