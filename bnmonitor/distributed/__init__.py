"""The exchange of statistics between the processes of a training."""

from bnmonitor.distributed.exchange import RankExchange
from bnmonitor.distributed.payload import OwnAffine
from bnmonitor.distributed.world import distributed, world_size

__all__ = [
    "OwnAffine",
    "RankExchange",
    "distributed",
    "world_size",
]
