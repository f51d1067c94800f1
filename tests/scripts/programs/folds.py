"""Cross-validation: a new model and a new optimizer for each fold."""

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
for fold in range(3):
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    kept = torch.arange(len(x)) % 3 != fold
    for _ in range(3):
        net.train()
        for i in torch.randperm(int(kept.sum())).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[kept][i]), y[kept][i]).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            print(fold, (net(x[~kept]).argmax(1) == y[~kept]).float().mean().item())
digest(net)
