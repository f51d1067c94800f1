"""Spawns two processes that train together and leave their group before they end; no variable tells their ranks."""

import sys
import tempfile
from pathlib import Path

import torch
from common import Net, digest, digits, seed
from torch import distributed, multiprocessing, nn


def work(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seed()
    x, y, *_ = digits()
    net = Net()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[i[rank::2]]), y[i[rank::2]]).backward()
        optimizer.step()
    distributed.destroy_process_group()
    if rank == 0:
        digest(net)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        multiprocessing.spawn(work, args=(Path(made).as_posix(),), nprocs=2)
    print(sys.argv[1:])
