"""A script that has a monitor of its own: it is not watched twice."""

import torch
from common import Net, digest, digits, seed
from torch import nn

from bnmonitor import Monitor

seed()
x, y, *_ = digits()
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
with Monitor(net, optimizer=optimizer) as monitor:
    for i in torch.randperm(len(x)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        optimizer.step()
        monitor.step()
digest(net)
