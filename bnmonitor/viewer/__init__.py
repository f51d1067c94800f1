"""The drawing code, shared by the TensorBoard tab and the HTML page."""

from pathlib import Path

DIRECTORY = Path(__file__).parent
"""The directory of its modules."""
