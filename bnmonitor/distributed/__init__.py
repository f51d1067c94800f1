"""The exchange of statistics between the processes of a training."""

from bnmonitor.distributed.exchange import RankExchange
from bnmonitor.distributed.world import distributed, world_size

__all__ = [
    "RankExchange",
    "distributed",
    "world_size",
]
