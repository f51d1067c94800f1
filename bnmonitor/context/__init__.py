"""Facts of the training around the layers: optimizers, loaders, the run."""

from bnmonitor.context.gather import FactsGatherer, Recorded
from bnmonitor.context.optimizers import rate_of
from bnmonitor.context.run import RunFacts

__all__ = [
    "FactsGatherer",
    "Recorded",
    "RunFacts",
    "rate_of",
]
