"""A network over time steps, whose layers take them before the batch, as spiking networks do."""

import torch
from common import digest, digits, seed
from torch import Tensor, nn


def over_time(forward, x: Tensor) -> Tensor:
    return forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Conv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return over_time(super().forward, x)


class Norm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return over_time(super().forward, x)


seed()
x, y, vx, vy = digits()
net = nn.Sequential(Conv(1, 8, 3, padding=1, bias=False), Norm(8), nn.ReLU(), nn.Flatten(2), nn.Linear(8 * 64, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
for epoch in range(2):
    net.train()
    for i in torch.randperm(len(x))[:640].split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[i].expand(2, -1, -1, -1, -1)).mean(0), y[i]).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        print(epoch, (net(vx.expand(2, -1, -1, -1, -1)).mean(0).argmax(1) == vy).sum().item())
digest(net)
