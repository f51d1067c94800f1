"""The autograd graph of a sampled step, read as a network."""

from bnmonitor.graph.tracer import Tracer
from bnmonitor.graph.unregistered import UnregisteredNorms

__all__ = [
    "Tracer",
    "UnregisteredNorms",
]
