"""Stochastic weight averaging, whose statistics are estimated at the end."""

import torch
from common import Net, digest, digits, seed
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

seed()
x, y, vx, vy = digits()
loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
swa, schedule = AveragedModel(net), SWALR(optimizer, swa_lr=0.05)
for epoch in range(3):
    net.train()
    for a, b in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(a), b).backward()
        optimizer.step()
    if epoch:
        swa.update_parameters(net)
        schedule.step()
update_bn(loader, swa)
swa.eval()
with torch.no_grad():
    print((swa(vx).argmax(1) == vy).float().mean().item())
digest(net, swa)
