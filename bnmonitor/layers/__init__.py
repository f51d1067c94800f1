"""Which normalization layers a model has, and how to listen to them."""

from bnmonitor.layers.discovery import ROOT, Discovery, discover, norms
from bnmonitor.layers.hooks import Hook, is_compiled, own_forward, recomputing, when_compiling
from bnmonitor.layers.kinds import channels_of, family_of, own_forwards, same_layer, writes_pairwise
from bnmonitor.layers.segments import Segments
from bnmonitor.layers.sharding import is_split, unwrapped
from bnmonitor.layers.table import Family, LayerTable

__all__ = [
    "ROOT",
    "Discovery",
    "Family",
    "Hook",
    "LayerTable",
    "Segments",
    "channels_of",
    "discover",
    "family_of",
    "is_compiled",
    "is_split",
    "norms",
    "own_forward",
    "own_forwards",
    "recomputing",
    "same_layer",
    "unwrapped",
    "when_compiling",
    "writes_pairwise",
]
