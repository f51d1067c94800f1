"""A head is trained on a backbone that stays in evaluation mode; the model has parts that are called one by one."""

import torch
from common import Net, digest, digits, seed
from torch import nn

seed()
x, y, vx, vy = digits()
backbone = Net()
pre = torch.optim.Adam(backbone.parameters(), 3e-3)
for i in torch.randperm(len(x)).split(32):
    pre.zero_grad()
    nn.functional.cross_entropy(backbone(x[i]), y[i]).backward()
    pre.step()
for p in backbone.parameters():
    p.requires_grad_(False)
backbone.eval()
head = nn.Sequential(nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(head.parameters(), 3e-3)
for _ in range(2):
    head.train()
    for i in torch.randperm(len(x)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(backbone.body(x[i]).flatten(1)), y[i]).backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        print((head(backbone.body(vx).flatten(1)).argmax(1) == vy).float().mean().item())
digest(backbone, head)
