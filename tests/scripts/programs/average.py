"""An exponential average of the weights is what is evaluated."""

import torch
from common import Net, digest, digits, seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

seed()
x, y, vx, vy = digits()
net = Net()
ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(3):
    net.train()
    for i in torch.randperm(len(x)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        optimizer.step()
        ema.update_parameters(net)
    ema.eval()
    with torch.no_grad():
        print(epoch, (ema(vx).argmax(1) == vy).float().mean().item())
digest(net, ema)
