"""The fault: a learning rate that is far too high; and at the end an error."""

import sys

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=float(sys.argv[1]))
for i in torch.randperm(len(x)).repeat(2).split(32):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[i]), y[i]).backward()
    optimizer.step()
digest(net)
raise ValueError("lost")
