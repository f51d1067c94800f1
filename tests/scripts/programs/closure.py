"""L-BFGS, whose closure runs the model several times for a step."""

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
net = Net()
optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)
for _ in range(12):

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[:256]), y[:256])
        loss.backward()
        return loss

    print(float(optimizer.step(closure)))
digest(net)
