"""DistributedDataParallel, for torchrun with two processes on gloo."""

import torch
from common import Net, digest, digits, seed
from torch import distributed, nn

distributed.init_process_group("gloo")
rank = distributed.get_rank()
seed()
x, y, vx, vy = digits()
net = Net()
model = nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    model.train()
    for i in torch.randperm(len(x)).split(64):
        own = i[rank::2]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[own]), y[own]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(vx).argmax(1) == vy).float().mean().item()
distributed.barrier()
if rank == 0:
    print(accuracy)
    digest(net)
distributed.destroy_process_group()
