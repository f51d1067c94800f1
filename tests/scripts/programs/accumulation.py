"""Four micro-batches for each step of the optimizer."""

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(4):
    net.train()
    for step, i in enumerate(torch.randperm(len(x)).split(32)):
        loss = nn.functional.cross_entropy(net(x[i]), y[i]) / 4
        loss.backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    net.eval()
    with torch.no_grad():
        print((net(vx).argmax(1) == vy).float().mean().item())
digest(net)
