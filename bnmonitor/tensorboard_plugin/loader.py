"""The module that TensorBoard imports when it starts.

TensorBoard imports it without a guard: if the import fails, TensorBoard does not start, and if it is slow, every start
is slow. So it imports only the standard library, what TensorBoard has imported already, and two names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensorboard.plugins import base_plugin

from bnmonitor.history.schema import KEPT, PLUGIN

if TYPE_CHECKING:
    import argparse


class BatchNormLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the tab's plugin; it defines no flags of its own."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Make TensorBoard keep bnmonitor's frames, unless ``--samples_per_plugin`` says how many."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(PLUGIN, KEPT)

    def load(self, context: Any) -> Any:
        """Return the plugin."""
        from bnmonitor.tensorboard_plugin.plugin import BatchNormPlugin

        return BatchNormPlugin(context)
