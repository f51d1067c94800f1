"""What is known of the training around the layers."""

from bnmonitor.context.gather import FactsGatherer
from bnmonitor.context.run import RunFacts

__all__ = [
    "FactsGatherer",
    "RunFacts",
]
