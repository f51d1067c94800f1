"""Which normalization layers a model has, and how to listen to them."""

from bnmonitor.layers.compiled import compiled_parts, freezes_graphs, graphs_compiled, is_compiled
from bnmonitor.layers.discovery import ROOT, Discovery, discover, norms
from bnmonitor.layers.graphs import captures
from bnmonitor.layers.hooks import Hooks, recomputing, when_compiling
from bnmonitor.layers.kinds import (
    ANY_NORM,
    BATCH_NORM,
    KINDS,
    Fact,
    Family,
    Kind,
    as_normalized,
    channels_of,
    is_synced,
    kind_of,
    own_forwards,
    runs_torch_forward,
    same_layer,
    writes_pairwise,
)
from bnmonitor.layers.oddities import reason_against
from bnmonitor.layers.segments import Segments
from bnmonitor.layers.sharding import full_name, is_split, local_part, own_part, unwrapped
from bnmonitor.layers.table import Layer, LayerTable

__all__ = [
    "ANY_NORM",
    "BATCH_NORM",
    "KINDS",
    "ROOT",
    "Discovery",
    "Fact",
    "Family",
    "Hooks",
    "Kind",
    "Layer",
    "LayerTable",
    "Segments",
    "as_normalized",
    "captures",
    "channels_of",
    "compiled_parts",
    "discover",
    "freezes_graphs",
    "full_name",
    "graphs_compiled",
    "is_compiled",
    "is_split",
    "is_synced",
    "kind_of",
    "local_part",
    "norms",
    "own_forwards",
    "own_part",
    "reason_against",
    "recomputing",
    "runs_torch_forward",
    "same_layer",
    "unwrapped",
    "when_compiling",
    "writes_pairwise",
]
