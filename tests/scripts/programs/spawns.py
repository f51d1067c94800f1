"""Starts processes that train, by torch.multiprocessing and by fork."""

import os

import torch
from common import Net, digest, digits, seed
from torch import multiprocessing, nn


def work(rank: int) -> None:
    seed()
    x, y, *_ = digits()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for i in torch.randperm(len(x)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        optimizer.step()
    digest(net)


if __name__ == "__main__":
    multiprocessing.spawn(work, nprocs=1)
    print("spawned", flush=True)
    work(0)
    child = os.fork()
    if child == 0:
        work(1)
        os._exit(0)
    os.waitpid(child, 0)
    print("forked")
