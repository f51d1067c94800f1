"""The loop of every tutorial."""

import torch
from common import Net, digest, digits, seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

seed()
x, y, vx, vy = digits()
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
for epoch in range(3):
    net.train()
    for a, b in DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(a), b)
        loss.backward()
        optimizer.step()
    scheduler.step()
    net.eval()
    with torch.no_grad():
        print(epoch, (net(vx).argmax(1) == vy).float().mean().item())
digest(net)
