"""What TensorBoard imports when it starts.

It does so without a guard: should this module fail to import, TensorBoard does not start at all; and what it costs,
every start of TensorBoard pays. So it imports nothing but the standard library, what TensorBoard has imported already,
and two names.
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
        """Have our frames kept, unless ``--samples_per_plugin`` says how many."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(PLUGIN, KEPT)

    def load(self, context: Any) -> Any:
        """Return the plugin."""
        from bnmonitor.tensorboard_plugin.plugin import BatchNormPlugin

        return BatchNormPlugin(context)
